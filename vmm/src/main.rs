//! rvm-vmm: one virtual machine, or QEMU and its back end, in a jail.

use std::process::ExitCode;

use rvm_vmm::commands;

fn main() -> ExitCode {
    let mode = std::env::args().nth(1);
    let result = match mode.as_deref() {
        Some("machine") => commands::machine(),
        Some("template") => commands::template(),
        Some("qemu") => commands::qemu(),
        Some("backend") => commands::backend(),
        Some("probe") => commands::probe(),
        Some("namespace") => commands::namespace(),
        Some("--version") => commands::version(),
        _ => commands::usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
