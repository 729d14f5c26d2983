//! rvm checkpoint and rvm restore

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use rvm_sandbox::checkpoint::Image;
use rvm_sandbox::container::lifecycle;

use super::{block_on, create, run};
use crate::cli::{CheckpointArgs, Global, ImageArgs, RestoreArgs};

/// The directory of a checkpoint whose place was not said: runc's.
const DEFAULT: &str = "checkpoint";

/// Writes a container's machine to a checkpoint.
pub fn checkpoint(global: &Global, args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    refuse(args.refused())?;
    let container = global.store().open(&args.id)?;
    let dir = path(&args.image)?;
    block_on(lifecycle::checkpoint(&container, &dir, args.leave_running))??;
    Ok(ExitCode::SUCCESS)
}

/// Lets a container go on from a checkpoint. Without --detach, this process is its monitor.
pub fn restore(global: &Global, args: RestoreArgs) -> anyhow::Result<ExitCode> {
    refuse(args.refused())?;
    let dir = path(&args.image)?;
    let run = args.into_run();
    // What is wrong with it is told before anything is made.
    let image = Image::open(&dir)?;
    if run.detach {
        if run.timings {
            bail!("--timings needs a container in the foreground; leave --detach away");
        }
        create::create(global, &run.create, Some(dir))?;
        return Ok(ExitCode::SUCCESS);
    }
    run::monitored(|anchor| run::foreground(global, &run, Some(image), anchor))
}

fn refuse(option: Option<&str>) -> anyhow::Result<()> {
    match option {
        Some(option) => bail!("{option} is not supported: see rvm-checkpoint(8)"),
        None => Ok(()),
    }
}

fn path(args: &ImageArgs) -> anyhow::Result<PathBuf> {
    let path = args.image_path.clone().unwrap_or_else(|| DEFAULT.into());
    Ok(std::path::absolute(path)?)
}
