//! Pulls the plug of a store at every step of a recorded workload: `power_loss [--seed N] [--images N] [--control no-sync]`.
//!
//! Prints one line of JSON and ends with 0 when nothing was lost. With the control it has to fail.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;
use testkit::power::{Control, Report, campaign};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            // Nothing is left to tell when stderr is gone as well.
            drop(writeln!(std::io::stderr(), "power_loss: {problem}"));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let (mut seed, mut images, mut control) = (1, 1000, Control::None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{name}` needs a value"))?;
        let number = || value.parse::<u64>().map_err(|error| format!("`{name} {value}`: {error}"));
        match (name.as_str(), value.as_str()) {
            ("--seed", _) => seed = number()?,
            ("--images", _) => images = number()?,
            ("--control", "no-sync") => control = Control::NoSync,
            _ => return Err(format!("`{name} {value}` is not known")),
        }
    }
    let report = campaign(seed, images, control)?;
    print(seed, control, &report)?;
    Ok(report.ok())
}

fn print(seed: u64, control: Control, report: &Report) -> Result<(), String> {
    let Report { images, operations, acknowledged, lost, half, index, refused, first } = report;
    let line = json!({
        "ok": report.ok(),
        "seed": seed,
        "control": match control { Control::None => None, Control::NoSync => Some("no-sync") },
        "images": images,
        "operations": operations,
        "acknowledged": acknowledged,
        "lost": lost,
        "half": half,
        "index": index,
        "refused": refused,
        "first": first,
    });
    writeln!(std::io::stdout(), "{line}").map_err(|error| error.to_string())
}
