//! Templates whose texts hold anything.

use std::fs;
use std::path::Path;

use super::key::{Key, Kind};
use super::store::{MEMORY, STATE, Store};
use super::written::WRITTEN;

/// A name that a template's directory can have.
const ID: &str = "0123456789abcdef";

/// Reads `text` as the key of a template in the directory `path`, and as what is noted of one that
/// failed. Both are of another boot or of files that are not there, so a sweep takes them away.
pub fn read_any_templates(path: &Path, text: &[u8]) {
    let store = Store::create(path).unwrap();
    fs::create_dir_all(path.join(ID)).unwrap();
    for name in ["key", STATE, MEMORY, WRITTEN] {
        fs::write(path.join(ID).join(name), text).unwrap();
    }
    let note = [br#"{"reason":"a","strikes":2,"key":"#, text, b"}"].concat();
    for (name, text) in [(ID, text), ("fedcba9876543210", &note)] {
        fs::write(path.join(format!("{name}.failed")), text).unwrap();
    }
    let entries = store.entries().unwrap();
    if let Ok(key) = serde_json::from_slice::<Key>(text) {
        assert_eq!(entries[0].key, key);
        let kind = Kind::new(key).unwrap();
        let _ = (
            store.find(&kind),
            store.given_up(&kind),
            kind.key.shape.size(),
        );
    }
    let lock = store.lock(true).unwrap().unwrap();
    store.sweep(&lock);
    drop(lock);
    let left = fs::read_dir(path).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}
