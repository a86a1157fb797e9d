//! Asking a program whether it works with what it was given.

use std::time::Duration;

use crate::reload::{About, run};

/// Bytes of a health answer that are looked at; what follows does not matter.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// How a program is asked, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    pub(crate) probe: Probe,
    /// Time for one question.
    pub(crate) timeout: Duration,
    /// Time between questions.
    pub(crate) interval: Duration,
    /// Time until the program must be healthy with the new value.
    pub(crate) deadline: Duration,
}

#[derive(Clone)]
pub(crate) enum Probe {
    /// A GET: healthy with a status from 200 to 299 and, if given, this text in the body.
    Http { client: egress::Client, target: String, expect: Option<String> },
    /// A command, without a shell: healthy with status 0.
    Command(Vec<String>),
}

impl PartialEq for Probe {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Command(one), Self::Command(other)) => one == other,
            (Self::Http { client: a, target, expect }, Self::Http { client: b, target: other_target, expect: other_expect }) => {
                a.address() == b.address() && target == other_target && expect == other_expect
            }
            _ => false,
        }
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { client, target, expect } => write!(f, "GET {}{target} expecting {expect:?}", client.address()),
            Self::Command(command) => write!(f, "{command:?}"),
        }
    }
}

/// A client of the server of an `http://` URL, and what to ask it for.
pub(crate) fn url(url: &str) -> Result<(egress::Client, String), String> {
    let rest = url.strip_prefix("http://").ok_or("expected an `http://` URL")?;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(at).ok_or("expected an `http://` URL")?;
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let address = egress::Address::parse(&format!("http://{authority}")).map_err(|error| error.to_string())?;
    Ok((egress::Client::new(address, egress::Options::default()), target))
}

/// How a question was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Healthy,
    /// It says that it is not, and why.
    Unhealthy(String),
    /// Nobody is there to ask.
    Absent(String),
}

impl Health {
    /// By a GET on an `http://` URL, in which `{generation}` stands for the generation, as it does in `expect`.
    ///
    /// # Errors
    /// When it is not such a URL.
    pub fn http(url: &str, expect: Option<String>) -> Result<Self, String> {
        let (client, target) = self::url(url)?;
        Ok(Self::with(Probe::Http { client, target, expect }))
    }

    /// By a command and its arguments, in which `{generation}` stands for the generation.
    #[must_use]
    pub fn command(command: Vec<String>) -> Self {
        Self::with(Probe::Command(command))
    }

    /// With other times: for one question, between questions, until it must be healthy.
    #[must_use]
    pub fn times(self, timeout: Duration, interval: Duration, deadline: Duration) -> Self {
        Self { timeout, interval, deadline, ..self }
    }

    fn with(probe: Probe) -> Self {
        Self { probe, timeout: Duration::from_secs(5), interval: Duration::from_millis(200), deadline: Duration::from_secs(30) }
    }

    /// Asks until the answer is yes or the deadline passes; then the last answer.
    pub(crate) async fn wait(&self, about: &About<'_>) -> Answer {
        let mut last = Answer::Unhealthy(format!("the health probe had no answer within {:?}", self.deadline));
        let asking = async {
            let mut missed = false;
            loop {
                last = self.ask(about).await;
                let (Answer::Unhealthy(found) | Answer::Absent(found)) = &last else { return };
                if !missed {
                    let (found, expected, deadline) = (about.value.scrub(found), self.expected(about), format!("{:?}", self.deadline));
                    tracing::info!(
                        rotation = about.rotation,
                        generation = about.generation(),
                        found,
                        expected,
                        deadline,
                        "not healthy yet"
                    );
                }
                missed = true;
                tokio::time::sleep(self.interval).await;
            }
        };
        if tokio::time::timeout(self.deadline, asking).await.is_ok() { Answer::Healthy } else { last }
    }

    /// What the probe is expected to find.
    fn expected(&self, about: &About<'_>) -> String {
        match &self.probe {
            Probe::Http { client, target, expect } => {
                let url = format!("{}{}", client.address(), about.fill(target));
                let text = expect.as_ref().map_or_else(String::new, |text| format!(" and `{}` in the answer", about.fill(text)));
                format!("GET {url} is answered with a status of 200 to 299{text}")
            }
            Probe::Command(command) => format!("`{}` ends with status 0", command.first().map_or("", String::as_str)),
        }
    }

    async fn ask(&self, about: &About<'_>) -> Answer {
        match &self.probe {
            Probe::Command(command) => match run(command, about, self.timeout).await {
                Ok(()) => Answer::Healthy,
                Err(why) => Answer::Unhealthy(why),
            },
            Probe::Http { client, target, expect } => {
                let asked = async {
                    // A connection of its own: one that was opened before a restart proves nothing.
                    let answer = client.send_alone(egress::Request::new("GET", &about.fill(target))).await?;
                    Ok::<_, egress::Error>((answer.status, answer.body.beginning(ANSWER_BYTES_MAX).await?))
                };
                let (status, body) = match tokio::time::timeout(self.timeout, asked).await {
                    Ok(Ok(answer)) => answer,
                    // A question that cannot be put is a mistake in the configuration, which waiting does not mend.
                    Ok(Err(error @ egress::Error::Request { .. })) => return Answer::Unhealthy(client::explain(&error)),
                    Ok(Err(error)) if error.never_sent() => return Answer::Absent(client::explain(&error)),
                    Ok(Err(error)) => return Answer::Unhealthy(client::explain(&error)),
                    Err(_) => return Answer::Unhealthy(format!("the health probe had no answer within {:?}", self.timeout)),
                };
                let text = String::from_utf8_lossy(body.expose());
                if !(200..300).contains(&status) {
                    Answer::Unhealthy(format!("the health probe was answered with status {status}: {}", text.trim()))
                } else if expect.as_ref().is_some_and(|expected| !text.contains(&about.fill(expected))) {
                    Answer::Unhealthy("the health probe was answered without the expected text".to_owned())
                } else {
                    Answer::Healthy
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, expected) in [
            ("http://127.0.0.1:80/healthz?g={generation}", Some("/healthz?g={generation}")),
            ("http://h:80", Some("/")),
            ("http://h?x", Some("/?x")),
            ("https://h:80/", None),
            ("h:80/", None),
            ("http://u:p@h/", None),
        ] {
            let target = Health::http(url, None).ok().map(|health| match health.probe {
                Probe::Http { target, .. } => target,
                Probe::Command(_) => unreachable!(),
            });
            assert_eq!(target.as_deref(), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn a_question_that_cannot_be_put_is_not_waited_for() {
        let value = client::Credential::from_fields(7, &[]);
        let about = About { rotation: "p", value: &value, file: std::path::Path::new("/f") };
        let health = Health::http("http://127.0.0.1:1/health of it", None).unwrap();
        assert_eq!(health.ask(&about).await, Answer::Unhealthy("the target cannot be sent".to_owned()));
        let health = Health::http("http://127.0.0.1:1/health", None).unwrap();
        assert!(matches!(health.ask(&about).await, Answer::Absent(_)));
    }
}
