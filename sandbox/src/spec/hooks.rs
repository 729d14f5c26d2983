//! Checks the hooks that run in the guest.
//!
//! A startContainer hook is a program of the container's image. A createContainer hook is a program
//! of the host, which is shared with the guest as a single file, so it must be linked statically.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use oci_spec::runtime::{Hook, Hooks};

/// `PT_INTERP` of elf(5).
const PT_INTERP: u32 = 3;

/// The most program headers that are read. Linkers write about ten.
const MAX_HEADERS: u16 = 256;

/// All lists of hooks with their names.
pub fn lists(hooks: &Hooks) -> [(&'static str, &[Hook]); 6] {
    [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ]
    .map(|(name, list)| (name, list.as_deref().unwrap_or_default()))
}

/// Fails with the field and the reason if a createContainer hook cannot run in a guest.
pub fn check(hooks: &Hooks) -> Result<(), (String, String)> {
    for (index, hook) in hooks.create_container().iter().flatten().enumerate() {
        if let Err(error) = check_program(hook.path()) {
            let field = format!("hooks.createContainer[{index}].path");
            return Err((field, format!("{}: {error}", hook.path().display())));
        }
    }
    Ok(())
}

fn check_program(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let unfit = |text: &str| Err(io::Error::new(io::ErrorKind::Unsupported, text));
    let mut header = [0; 64];
    let length = file.read_at(&mut header, 0)?;
    if length < header.len() || header[..5] != *b"\x7fELF\x02" {
        return unfit(
            "a createContainer hook runs in the guest and must be a static 64-bit program",
        );
    }
    // Elf64_Ehdr: e_phoff, e_phentsize and e_phnum.
    let offset = u64::from_le_bytes(array(&header[32..40]));
    let size = u64::from(u16::from_le_bytes(array(&header[54..56])));
    let count = u16::from_le_bytes(array(&header[56..58])).min(MAX_HEADERS);
    for index in 0..u64::from(count) {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset.saturating_add(index * size))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return unfit(
                "a createContainer hook runs in the guest, which has no shared libraries; it must \
                 be linked statically",
            );
        }
    }
    Ok(())
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{HookBuilder, HooksBuilder};

    fn refusal(path: &str) -> Option<String> {
        let hook = HookBuilder::default().path(path).build().unwrap();
        let hooks = HooksBuilder::default().create_container(vec![hook]);
        check(&hooks.build().unwrap())
            .err()
            .map(|(field, reason)| format!("{field} {reason}"))
    }

    #[test]
    fn only_a_program_that_needs_no_other_file_can_run_in_a_guest() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
        let message = refusal(script.to_str().unwrap()).unwrap();
        assert!(
            message.starts_with("hooks.createContainer[0].path "),
            "{message}"
        );
        assert!(message.contains("static"), "{message}");
        assert!(refusal("/bin/cat").unwrap().contains("shared libraries"));
        assert!(refusal("/nonexistent").unwrap().contains("No such file"));
        assert_eq!(refusal("/bin/busybox"), None);
    }
}
