//! `audit export`: fetches checkpoints, tiles and entries, and lays them out as `keyward-verify` reads them.
//!
//! Nothing is believed here: what is written is what came, and the verifier judges it.

use ::audit::export::Directory;
use ::audit::{Layout, TreeName};

use super::args::{Audit, AuditExport};
use super::{Api, Failure, Outcome, output};

pub(super) async fn run(command: Audit) -> Outcome {
    let Audit::Export(args) = command;
    export(args).await
}

async fn export(args: AuditExport) -> Outcome {
    let api = Api::open(&args.remote)?;
    let failed = |error: ::audit::Error| Failure::local(format!("Error exporting the audit log: {error}"));
    let directory = Directory::create(&args.directory).map_err(failed)?;
    let mut files = 0_u64;
    for tree in TreeName::FETCH_ORDER {
        let checkpoint = fetch(&api, &Layout::Checkpoint.path(tree)).await?;
        let needed = Layout::of_checkpoint(&checkpoint)
            .map_err(|error| Failure::server(format!("Error exporting the audit log: the server's checkpoint cannot be read: {error}")))?;
        for file in needed {
            directory.put(tree, file, &fetch(&api, &file.path(tree)).await?).map_err(failed)?;
            files += 1;
        }
        directory.put(tree, Layout::Checkpoint, &checkpoint).map_err(failed)?;
        files += 1;
    }
    let vkeys = fetch(&api, "vkeys").await?;
    let vkeys = String::from_utf8(vkeys).map_err(|_| Failure::server("Error exporting the audit log: the server's keys are not text"))?;
    directory.finish(&vkeys).map_err(failed)?;
    output::line(&format!("Success! Exported the audit log ({files} files) to: {}", args.directory.display()))?;
    Ok(0)
}

async fn fetch(api: &Api, path: &str) -> Result<Vec<u8>, Failure> {
    let answer = api.expect("exporting the audit log", "GET", &format!("sys/audit-log/{path}"), &[], None).await?;
    Ok(answer.bytes().to_vec())
}
