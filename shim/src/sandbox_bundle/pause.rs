//! The pause program: the init process of a pod whose sandbox has no container image. Its source is
//! `pause/pause.rs`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The program's name in its root file system, where it is the only file.
pub const NAME: &str = "pause";

/// An ELF executable, which the build script has compiled.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// Writes the program into a directory.
pub fn install(dir: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o555);
    options.open(dir.join(NAME))?.write_all(PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn the_program_waits_until_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path()).unwrap();
        let mut child = Command::new(dir.path().join(NAME)).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let ignored = status.lines().find(|line| line.starts_with("SigIgn:"));
        let ignored = u64::from_str_radix(ignored.unwrap()[7..].trim(), 16).unwrap();
        assert_ne!(ignored & 1 << (17 - 1), 0, "SIGCHLD is ignored");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
