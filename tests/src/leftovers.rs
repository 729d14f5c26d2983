//! Removes what earlier test runs left that were killed before they could clean up. It runs before
//! the first test of a run.
//!
//! The names of directories and cgroups contain the pid of the test process that made them. If no
//! process has that pid any more, nobody needs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use serde_json::Value;

use crate::cgroups::Cgroups;
use crate::command::mentions;
use crate::{containerd, leaks};

/// The start of names of directories and cgroups, before the pid.
const PREFIX: &str = "rvm-test-";

/// The start of names that this process gives.
pub fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Removes what ended processes left, once in the life of this process.
pub fn remove() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let groups = Cgroups::existing(is_left);
        groups.iter().for_each(Cgroups::kill);
        for dir in names_in(&std::env::temp_dir()) {
            if is_left(&dir) {
                remove_world(&std::env::temp_dir().join(dir));
            }
        }
        // They are empty by now.
        drop(groups);
    });
}

/// Whether a test process that has ended gave this name.
fn is_left(name: &str) -> bool {
    let number = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    let pid = number.and_then(|number| number.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn remove_world(dir: &Path) {
    delete_containers(&dir.join("state"), Path::new("/"));
    for namespace in names_in(containerd::STATE.as_ref()) {
        delete_containers(&containerd::state_of(&namespace), dir);
    }
    leaks::unmount_below(dir);
    // Mounts there may lead to the host's files.
    if mentions("/proc/self/mountinfo", dir) == 0 {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Deletes the containers of a state root whose bundles are below a directory.
pub fn delete_containers(root: &Path, bundles: &Path) {
    for id in names_in(root) {
        let state = fs::read(root.join(&id).join("state.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        let bundle = PathBuf::from(state["bundle"].as_str().unwrap_or("/"));
        if bundle.starts_with(bundles) {
            let mut delete = Command::new(crate::dist().join("bin/rvm"));
            delete
                .arg("--root")
                .arg(root)
                .args(["delete", "--force", &id]);
            let _ = delete.status();
        }
    }
    // This fails unless it is empty.
    let _ = fs::remove_dir(root);
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
