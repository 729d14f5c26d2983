//! An installation of the previous release that is upgraded while its containers run.

use std::path::Path;
use std::process::Command;

/// A copy of the previous release, in a directory of its own.
pub struct Installation(tempfile::TempDir);

impl Installation {
    /// Installs the binaries of `$RVM_TEST_PREVIOUS`, a dist/ directory. Without one there is
    /// nothing to test, and the test says that it is skipped.
    pub fn previous() -> Option<Self> {
        let Some(previous) = std::env::var_os("RVM_TEST_PREVIOUS") else {
            println!("skipped: there are no binaries of the previous release");
            return None;
        };
        let installation = Self(tempfile::tempdir().unwrap());
        installation.install(previous.as_ref());
        Some(installation)
    }

    /// The directory.
    pub fn dist(&self) -> &Path {
        self.0.path()
    }

    /// Puts the binaries that are tested in the place of the previous ones. As with a package
    /// manager, processes that run keep the files that they have.
    pub fn upgrade(&self) {
        self.install(&crate::dist());
    }

    fn install(&self, dist: &Path) {
        let copied = Command::new("cp")
            .args(["-a", "--remove-destination"])
            .arg(dist.join("."))
            .arg(self.dist())
            .status();
        assert!(copied.unwrap().success(), "{}", dist.display());
    }
}
