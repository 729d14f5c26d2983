//! rvm ps

mod columns;
mod options;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::ExitCode;

use rvm_sandbox::container::running;
use rvm_sandbox::host::users::UserNames;

use super::block_on;
use crate::cli::{Format, Global, PsArgs};

/// Prints the processes of a container. The table, for people, has those in the guest with their
/// pids there. The JSON list is for engines, which look pids up on the host: it has those of the
/// host's processes that run the container.
pub fn run(global: &Global, args: &PsArgs) -> anyhow::Result<ExitCode> {
    let columns = options::parse(&args.options)?;
    let container = global.store().open(&args.id)?;
    let text = match args.format {
        Format::Table => {
            let mut list = block_on(running::processes(&container))??;
            list.processes.sort_by_key(|process| process.pid);
            columns::table(&list, &UserNames::load(), &columns)
        }
        Format::Json => json(&running::host_processes(&container)?)?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn json(pids: &BTreeSet<i32>) -> anyhow::Result<String> {
    // As runc: no list rather than an empty one.
    let pids = (!pids.is_empty()).then_some(pids);
    Ok(serde_json::to_string(&pids)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_pids_or_nothing() {
        assert_eq!(json(&BTreeSet::from([78, 77])).unwrap(), "[77,78]\n");
        assert_eq!(json(&BTreeSet::new()).unwrap(), "null\n");
    }
}
