//! `policy`.

use serde_json::{Value, json};

use super::args::Policy;
use super::{Api, Failure, Outcome, input, output, secret};

pub(super) async fn run(command: Policy) -> Outcome {
    match command {
        Policy::Read(args) => {
            let api = Api::open(&args.remote)?;
            let answer = api.call("GET", &format!("sys/policies/acl/{}", args.name), &[], None).await?;
            if answer.status == 404 {
                return Err(Failure::server(format!("No policy named: {}", args.name)));
            }
            let answer = secret::found(answer, &format!("reading policy named {}", args.name), &args.name)?;
            if api.json {
                return output::line(&output::pretty(answer.text()?)).map(|()| 0);
            }
            let text = answer.json()?.pointer("/data/policy").and_then(Value::as_str).unwrap_or_default().trim_end().to_owned();
            output::line(&text)?;
        }
        Policy::List(remote) => {
            let api = Api::open(&remote)?;
            let answer = api.expect("listing policies", "LIST", "sys/policies/acl/", &[], None).await?;
            let body = answer.json()?;
            let keys = body.pointer("/data/keys").and_then(Value::as_array).cloned().unwrap_or_default();
            if api.json {
                output::line(&output::pretty(&Value::Array(keys).to_string()))?;
            } else {
                for key in keys.iter().filter_map(Value::as_str) {
                    output::line(key)?;
                }
            }
        }
        Policy::Write(args) => {
            let api = Api::open(&args.remote)?;
            let text = if args.file == "-" { input::stdin()? } else { input::file(&args.file)? };
            let name = args.name.trim().to_lowercase();
            let body = json!({ "policy": *text });
            let answer = api.expect("uploading policy", "PUT", &format!("sys/policies/acl/{name}"), &[], Some(&body)).await?;
            output::warnings(&answer.json()?);
            output::line(&format!("Success! Uploaded policy: {name}"))?;
        }
        Policy::Delete(args) => {
            let api = Api::open(&args.remote)?;
            api.expect(&format!("deleting {}", args.name), "DELETE", &format!("sys/policies/acl/{}", args.name), &[], None).await?;
            output::line(&format!("Success! Deleted policy: {}", args.name))?;
        }
    }
    Ok(0)
}
