//! Volumes of ConfigMaps and the like.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

/// A volume as kubelet writes it: files are links into a directory that is itself a link. Updates
/// replace that link.
pub struct Projected {
    dir: tempfile::TempDir,
    round: u32,
}

impl Projected {
    pub fn new(files: &[(String, String)]) -> Self {
        let mut volume = Self {
            dir: tempfile::tempdir().unwrap(),
            round: 0,
        };
        volume.write(files);
        for (name, _) in files {
            symlink(format!("..data/{name}"), volume.dir.path().join(name)).unwrap();
        }
        volume
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the files; returns the time when that was done.
    pub fn write(&mut self, files: &[(String, String)]) -> Instant {
        self.round += 1;
        let (dir, round) = (self.dir.path(), self.round);
        let name = format!("..round{round}");
        fs::create_dir(dir.join(&name)).unwrap();
        for (file, text) in files {
            fs::write(dir.join(&name).join(file), text).unwrap();
        }
        symlink(&name, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        let exchanged = Instant::now();
        let _ = fs::remove_dir_all(dir.join(format!("..round{}", round - 1)));
        exchanged
    }
}
