//! Ending the machine.
//!
//! The orderly end is a byte to [`POWER_OFF_PORT`], which ends both VMMs at once. Everything else
//! that stops the guest is a reset, by which the host knows that the guest has crashed.

use std::panic::PanicHookInfo;

use rustix::system::{RebootCommand, reboot};
use rvm_protocol::{POWER_OFF_BYTE, POWER_OFF_PORT};

use crate::sys::port;

/// Switches the machine off. Returns only if neither way works.
pub fn off() {
    if let Err(errno) = port::write_byte(POWER_OFF_PORT, POWER_OFF_BYTE) {
        log::warn!("power-off port: {errno}");
    }
    // No device serves the port, as on a machine that is not rvm's.
    if let Err(errno) = reboot(RebootCommand::PowerOff) {
        log::error!("power off: {errno}");
    }
}

/// Logs why the agent cannot go on, and resets the machine.
pub fn reset(reason: &str) -> ! {
    log::error!("fatal: {reason}");
    let _ = reboot(RebootCommand::Restart);
    // An init that ends makes the kernel panic, which ends the machine as well.
    std::process::exit(1)
}

/// Makes every panic in this process end the machine, with its message on the console.
pub fn reset_on_panic() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        reset(&info.to_string())
    }));
}
