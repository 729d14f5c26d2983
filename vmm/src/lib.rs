//! The virtual machine monitor.
//!
//! One process runs one machine. rvm starts it with a control socket as its standard input, sends
//! it a [`rvm_protocol::vmm::MachineConfig`] with every descriptor that the machine needs, and
//! receives its events until it ends. The crate's README says what it may assume and explains each
//! room.

// The rooms, bottom first: a room uses only rooms above it in this list. A test reads this block,
// so rustfmt leaves its order alone (`reorder_modules` in rustfmt.toml).
mod logging;
mod fds;
mod threads;
mod jail;
mod memory;
mod arch;
mod boot;
mod kvm;
mod virtio;
mod bus;
mod vcpus;
mod hotplug;
mod machine;
mod control;
mod probe;
mod qemu;
pub mod commands;

/// The jails of the three processes and the filters of their threads, for the test that enters them
/// as a program that was taken over.
pub mod jails {
    pub use crate::jail::filter::ThreadKind;
    pub use crate::machine::enter_jail as enter_machine;
    pub use crate::qemu::backend::enter_jail as enter_backend;
    pub use crate::qemu::enter_jail as enter_qemu;
}

/// What a fuzzer calls, with bytes that a guest or a file could hold: one function for each file in
/// fuzz/fuzz_targets. None may panic.
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing {
    pub use crate::machine::read_any_state as template_state;
    pub use crate::virtio::fs::hostile::requests as fuse_layer;
    pub use crate::virtio::hostile::devices as virtio_devices;
    pub use crate::virtio::hostile::registers as mmio;

    #[cfg(test)]
    mod tests {
        use std::collections::BTreeSet;
        use std::fs;
        use std::path::Path;

        type Target = (&'static str, fn(&[u8]));

        const TARGETS: [Target; 4] = [
            ("fuse_layer", super::fuse_layer),
            ("mmio", super::mmio),
            ("template_state", super::template_state),
            ("virtio_devices", super::virtio_devices),
        ];

        fn names(dir: &Path) -> BTreeSet<String> {
            let entries = fs::read_dir(dir).unwrap();
            let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
            entries
                .map(|entry| name(entry).into_string().unwrap())
                .collect()
        }

        #[test]
        fn every_target_takes_its_corpus() {
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
            let targets: BTreeSet<String> = TARGETS.map(|(name, _)| name.to_owned()).into();
            assert_eq!(names(&fuzz.join("corpus")), targets);
            let files = targets.iter().map(|name| format!("{name}.rs")).collect();
            assert_eq!(names(&fuzz.join("fuzz_targets")), files);
            for (name, target) in TARGETS {
                let corpus = fuzz.join("corpus").join(name);
                let inputs = names(&corpus);
                assert!(!inputs.is_empty(), "{name} has no corpus");
                for input in inputs {
                    println!("{name}/{input}");
                    target(&fs::read(corpus.join(input)).unwrap());
                }
            }
        }
    }
}
