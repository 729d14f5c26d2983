//! Mounts of config.json whose source is a block device or an image file.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::mounts::{is_of_mount, last_of, options, texts};
use crate::disk::{self, Disk, Stack};

/// Adds a mount's disk to those of the container. The mount becomes a bind mount of its file
/// system, with the options that concern a mount alone; the file system gets the others.
pub(super) fn mount(mount: &mut Mount, path: &Path, id: &str, disks: &mut Stack) {
    let kind = mount.typ().clone().unwrap_or_default();
    let read_only = last_of(mount, "ro", "rw").unwrap_or(false);
    let (of_mount, own): (Vec<_>, Vec<_>) = options(mount).partition(is_of_mount);
    let own = own
        .into_iter()
        .filter(|option| !["loop", "defaults"].contains(option));
    let own = texts(own);
    let of_mount = texts(["bind"].into_iter().chain(of_mount));
    let disk = Disk::new(path.to_owned(), &kind, read_only);
    let file_system = disks.mount(disk, &kind, own);
    mount.set_typ(Some("bind".to_owned()));
    mount.set_options(Some(of_mount));
    _ = mount.set_source(Some(disk::place(id, file_system)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_guest_mounts_the_disk_and_binds_its_file_system() {
        let mount = json!({
            "destination": "/data", "type": "ext4", "source": "/srv/data.img",
            "options": ["loop", "nosuid,rslave", "ro", "data=journal"],
        });
        let mut mount: Mount = serde_json::from_value(mount).unwrap();
        let mut stack = Stack::default();
        stack.mount(
            Disk::new("/root.img".into(), "xfs", false),
            "xfs",
            Vec::new(),
        );
        super::mount(&mut mount, Path::new("/srv/data.img"), "box", &mut stack);
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(
            mount.source().as_deref(),
            Some(Path::new("/run/rvm/disks/box/1"))
        );
        let options = mount.options().clone().unwrap();
        assert_eq!(options, ["bind", "nosuid", "rslave", "ro"]);
        let made = &stack.file_systems()[1];
        assert_eq!((made.kind.as_str(), made.disk), ("ext4", 1));
        assert_eq!(made.options, ["data=journal"]);
        assert!(made.read_only && stack.disks()[1].read_only);
    }
}
