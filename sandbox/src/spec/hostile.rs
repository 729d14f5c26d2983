//! A config.json that holds anything: it is refused in one line, or becomes what the guest gets and
//! what the host shares, none of it beside the container's own place.

use std::cell::RefCell;
use std::fs;
use std::path::Component;

use rvm_fuzz_input::{CONFIG, CONFIG_WORDS, Decisions, edited};
use rvm_sys::error_chain::chain;

use super::translate::translate;
use super::*;
use crate::sizing::{Bounds, Size};

const ID: &str = "web";

const BOUNDS: Bounds = Bounds {
    host_cpus: 4,
    default_vcpus: 1,
    default_memory_mib: 256,
    max_vcpus: 8,
};

thread_local! {
    /// A bundle with a root and a volume.
    static BUNDLE: RefCell<tempfile::TempDir> = RefCell::new({
        let dir = tempfile::tempdir().unwrap();
        for name in ["rootfs", "volume"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("rootfs/hosts"), "").unwrap();
        dir
    });
}

/// Loads and translates a configuration of these bytes, or ours with edits that they decide on.
pub fn configuration(input: &[u8]) {
    let mut decisions = Decisions(input);
    let text = match decisions.choose(2) {
        0 => decisions.0.to_vec(),
        _ => edited(&trimmed(&mut decisions), &CONFIG_WORDS, &mut decisions)
            .to_string()
            .into_bytes(),
    };
    BUNDLE.with_borrow(|bundle| {
        fs::write(bundle.path().join(CONFIG_FILE), &text).unwrap();
        match Bundle::load(bundle.path()) {
            Ok(bundle) => check(&bundle),
            Err(error) => assert!(!chain(&error).is_empty()),
        }
    });
    let process = process::from_json(&text);
    let _ = process.map(|process| serde_json::to_vec(&process).unwrap());
}

/// Our configuration without what cannot be together with the rest of it.
fn trimmed(decisions: &mut Decisions<'_>) -> String {
    let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
    let refused = [
        "/process/scheduler",
        "/mounts/6",
        "/process/execCPUAffinity",
    ];
    let rare = [
        "/linux/memoryPolicy",
        "/linux/uidMappings",
        "/linux/gidMappings",
        "/vm",
        "/hooks",
    ];
    let left_out = refused
        .into_iter()
        .chain(rare.into_iter().filter(|_| decisions.choose(3) > 0));
    for pointer in left_out {
        if let Some(value) = config.pointer_mut(pointer) {
            value.take();
        }
    }
    remove_nulls(&mut config);
    config.to_string()
}

fn remove_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        serde_json::Value::Array(list) => {
            list.retain(|one| !one.is_null());
            list.iter_mut().for_each(remove_nulls);
        }
        _ => {}
    }
}

fn check(bundle: &Bundle) {
    if let Ok(size) = Size::for_bundle(&bundle.spec, bundle.hardware, &BOUNDS) {
        assert!(size.is_possible(), "{size:?}");
    }
    let Ok(translation) = translate(bundle, ID, &[]) else {
        return;
    };
    for mount in &translation.mounts {
        let is_name = |part| matches!(part, Component::Normal(_));
        assert!(mount.place.components().all(is_name), "{mount:?}");
        let is_own = mount.place.starts_with(ID) || mount.reference.is_some();
        assert!(is_own, "{mount:?}");
    }
    let json = serde_json::to_vec(&translation.spec).unwrap();
    let again: ParsedSpec = from_json(std::str::from_utf8(&json).unwrap()).unwrap();
    let again = Spec::from(again);
    let root = again.root().as_ref().unwrap().path().clone();
    assert!(
        root.starts_with(rvm_protocol::SHARED_DIR) || root.starts_with(rvm_protocol::DISKS_DIR)
    );
}
