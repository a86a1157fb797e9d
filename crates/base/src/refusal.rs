//! What a request gets instead of an answer, with two messages that never mix: one for the caller, one for the operator's log.

/// What a caller could do differently. Only the HTTP room maps this to a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The input is wrong: correct it.
    Invalid,
    /// Not allowed, or not known: one uniform answer.
    Denied,
    /// Nothing is there.
    Missing,
    /// The path exists but has no such operation.
    Unsupported,
    /// The body or a header is larger than a limit.
    TooLarge,
    /// The request did not arrive in time.
    Late,
    /// The content type is not one that this route reads.
    MediaType,
    /// Too many at once: come back later.
    Overloaded,
    /// The server is sealed.
    Sealed,
    /// The server has not been initialised.
    Uninitialised,
    /// The log is poisoned or a part is missing: try another node or later.
    Unavailable,
    /// Ours to mend; the log says more.
    Internal,
}

impl Kind {
    /// Whether it says nothing of what was asked for: the server could not, and may be able to later.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Overloaded | Self::Sealed | Self::Uninitialised | Self::Unavailable | Self::Internal)
    }
}

/// A refusal. `errors` is what the caller reads; `log` stays in the server.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What the caller could do differently.
    pub kind: Kind,
    /// Texts for the caller, in Vault's wording where clients match it. May be empty (a missing thing).
    pub errors: Vec<String>,
    /// Warnings for the caller.
    pub warnings: Vec<String>,
    /// A body to send with the refusal, as raw JSON for `data`: deleted versions are answered 404 with their metadata.
    pub data: Option<Box<serde_json::value::RawValue>>,
    /// For the operator only. Never holds a secret.
    pub log: Option<String>,
}

impl Refusal {
    fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, errors: vec![text.into()], warnings: Vec::new(), data: None, log: None }
    }

    /// Bad input. Name the field in backticks and what would be right; never repeat the value.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, text)
    }

    /// The uniform refusal of the access rules, in the wording that clients match.
    #[must_use]
    pub fn denied() -> Self {
        Self::new(Kind::Denied, "1 error occurred:\n\t* permission denied\n\n")
    }

    /// The uniform refusal of a token that is missing, unknown, expired or bound elsewhere.
    #[must_use]
    pub fn bad_token() -> Self {
        Self::new(Kind::Denied, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
    }

    /// A refusal with its own text and the status of a denial (`bad token`, a forged acknowledgement).
    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(Kind::Denied, text)
    }

    /// Nothing is there: an empty list of errors, as clients expect.
    #[must_use]
    pub fn missing() -> Self {
        Self { kind: Kind::Missing, errors: Vec::new(), warnings: Vec::new(), data: None, log: None }
    }

    /// Nothing is there, and the caller should know what was looked for.
    pub fn missing_because(text: impl Into<String>) -> Self {
        Self::new(Kind::Missing, text)
    }

    /// The path exists without this operation.
    #[must_use]
    pub fn unsupported() -> Self {
        Self::new(Kind::Unsupported, "1 error occurred:\n\t* unsupported operation\n\n")
    }

    /// Anything else with a text for the caller.
    pub fn of(kind: Kind, text: impl Into<String>) -> Self {
        Self::new(kind, text)
    }

    /// Sealed.
    #[must_use]
    pub fn sealed() -> Self {
        Self::new(Kind::Sealed, "Vault is sealed")
    }

    /// Ours to mend: the caller reads `internal error`, the log reads `log`.
    pub fn internal(log: impl Into<String>) -> Self {
        Self { log: Some(log.into()), ..Self::new(Kind::Internal, "internal error") }
    }

    /// Adds a warning for the caller.
    #[must_use]
    pub fn warn(mut self, text: impl Into<String>) -> Self {
        self.warnings.push(text.into());
        self
    }
}

impl From<crate::rng::RngFault> for Refusal {
    fn from(fault: crate::rng::RngFault) -> Self {
        Self::internal(fault.to_string())
    }
}
