//! rvm fork

use std::process::ExitCode;

use anyhow::bail;
use rvm_sandbox::container::fork::{Copies, Copy, Plan};

use super::create;
use crate::cli::{CreateArgs, ForkArgs, Global};

/// Starts copies of a container, which go on from where it is.
pub fn run(global: &Global, args: &ForkArgs) -> anyhow::Result<ExitCode> {
    // What is wrong with these is told before the container stands still.
    global.config()?;
    create::check_notify_socket(std::env::var_os("NOTIFY_SOCKET"))?;
    let plan = Plan::new(&global.store(), &args.id, &args.bundle, &args.new)?;
    create::check_terminal(plan.has_terminal(), true, args.console_socket.as_deref())?;
    let copies = plan.carry_out()?;
    let mut failures = Vec::new();
    for copy in copies.each() {
        if let Err(error) = start(global, args, &copies, &copy) {
            copy.remove();
            failures.push(format!("{}: {error:#}", copy.id()));
        }
    }
    match failures.is_empty() {
        true => Ok(ExitCode::SUCCESS),
        false => bail!("{}", failures.join("; ")),
    }
}

fn start(global: &Global, args: &ForkArgs, copies: &Copies, copy: &Copy<'_>) -> anyhow::Result<()> {
    copy.put_in_place()?;
    let wanted = CreateArgs {
        console_socket: args.console_socket.clone(),
        ..CreateArgs::new(copy.bundle(), copy.id())
    };
    create::create(global, &wanted, Some(copies.image()))?;
    Ok(())
}
