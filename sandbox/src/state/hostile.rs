//! Files of rvm's own that hold anything: whoever reads one gets an error, and never a panic.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rvm_fuzz_input::{Decisions, edited};

use super::*;
use crate::checkpoint::Image;
use crate::dir::SandboxDir;
use crate::engine;
use crate::sizing::pod_limits;

thread_local! {
    static DIR: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().unwrap());
}

const STATE: &str = r#"{"version":2,"ociVersion":"1.0.2","id":"web","status":"running",
    "bundle":"/bundle","rootfs":"/bundle/rootfs","created":"2026-05-04T10:20:30.000000000Z",
    "owner":0,"annotations":{"a":"b"},"hooks":{"poststop":[{"path":"/bin/true","args":["true"]}]},
    "resources":{"memory":{"limit":268435456},"cpu":{"quota":50000,"period":100000,"cpus":"0-3"}},
    "firstResources":{"memory":{"limit":1}},"keptMemory":1,"terminal":false,
    "monitor":{"pid":1,"start_time":1},"standIn":7,"sandbox":"web","guestPid":2,
    "namespaces":[["pid","/proc/1/ns/pid"]],"exitStatus":0,
    "cgroup":{"version":"two","dirs":[{"hierarchy":"","mount":"/sys/fs/cgroup","path":"/a"}],
    "scope":["system.slice","rvm-web.scope"]}}"#;

const RECORD: &str = r#"{"version":2,"machine":[{"pid":7,"start_time":8}],"engine":"kvm",
    "startTimeoutSeconds":30,"silentSince":"2026-05-04T10:20:30Z"}"#;

const MANIFEST: &str = concat!(
    r#"{"version":1,"rvm":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","container":"web","guestPid":7,
    "streams":{"terminal":false,"stdin":0,"stdout":1,"stderr":2},
    "machine":{"start":{"vcpus":1,"memoryMib":512},"max":{"vcpus":1,"memoryMib":1024},
    "cardsAtStart":1,"diskSlots":2},"now":{"vcpus":1,"memoryMib":256},
    "cards":[{"mac":[2,0,0,0,0,1],"link":"eth0"}],
    "disks":[{"slot":6,"readOnly":true},{"slot":7,"readOnly":false}]}"#
);

const KEY: &str = r#"{"format":1,"boot":"a","cmdline":"quiet",
    "kernel":{"path":"/a","device":1,"inode":2,"size":3,"modified":[4,5]},
    "initramfs":{"path":"/b","device":1,"inode":2,"size":3,"modified":[4,5]},
    "vmm":{"path":"/c","device":1,"inode":2,"size":3,"modified":[4,5]},
    "shape":{"vcpus":1,"max_vcpus":4,"memory_mib":584,"max_memory_mib":4096,"net_slots":5,
    "disk_slots":0}}"#;

const WORDS: [&str; 16] = [
    "",
    "web",
    "..",
    "/",
    "kvm",
    "qemu",
    "running",
    "paused",
    "stopped",
    "creating",
    "two",
    "one",
    "0-8191",
    "4294967295",
    "cpu,cpuacct",
    "2026-05-04T10:20:30Z",
];

/// Writes the bytes, or a file of ours with edits that they decide on, to where rvm reads it.
pub fn files(input: &[u8]) {
    let mut decisions = Decisions(input);
    let kind = decisions.choose(4);
    let base = [STATE, RECORD, MANIFEST, KEY][usize::from(kind)];
    let text = match decisions.choose(2) {
        0 => decisions.0.to_vec(),
        _ => edited(base, &WORDS, &mut decisions)
            .to_string()
            .into_bytes(),
    };
    DIR.with_borrow(|dir| {
        let web = dir.path().join("state/web");
        fs::create_dir_all(&web).unwrap();
        match kind {
            0 => state(dir.path(), &web, &text),
            1 => record(&web, &text),
            2 => checkpoint(&web, &text),
            _ => engine::read_any_templates(&dir.path().join("templates"), &text),
        }
    });
}

fn state(root: &Path, web: &Path, text: &[u8]) {
    fs::write(web.join("state.json"), text).unwrap();
    let store = Store::new(root.join("state"));
    let container = store.open("web").unwrap();
    let locked = container.lock().unwrap();
    let _ = locked.load_to_delete();
    let state = locked.load();
    drop(locked);
    let Ok(state) = state else {
        return;
    };
    let _ = serde_json::to_vec(&state.report(None)).unwrap();
    let _ = (state.status(), state.pid(), state.last_pid());
    let limits = [state.limits(), state.limits()];
    let announced = state.resources.clone().unwrap_or_default();
    let _ = pod_limits::updated(Some(&announced), &limits);
    let _ = container.sandbox(&state);
    let _ = store.peers(container.id());
    // What is written is read again.
    container.lock().unwrap().save(&state).unwrap();
    assert_eq!(container.state().unwrap(), state);
}

fn record(web: &Path, text: &[u8]) {
    fs::write(web.join("sandbox.json"), text).unwrap();
    fs::write(web.join("guest-id"), text).unwrap();
    let dir = SandboxDir::open(web).unwrap();
    let _ = (dir.machine(), dir.alias());
    if let Ok(Some(record)) = dir.record() {
        let _ = record.start_timeout_seconds.map(Duration::from_secs);
        dir.write_record(&record).unwrap();
        assert_eq!(dir.record().unwrap(), Some(record));
    }
}

fn checkpoint(web: &Path, text: &[u8]) {
    fs::write(web.join("checkpoint.json"), text).unwrap();
    for name in ["state", "memory", "removed"] {
        fs::write(web.join(name), "").unwrap();
    }
    if let Ok(image) = Image::open(web) {
        assert!(image.manifest.now.is_possible());
    }
}
