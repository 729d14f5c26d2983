//! The names of extended attributes on the host.
//!
//! The jail may not set `trusted.*`, nor `security.*` but file capabilities, which stay what they
//! are: the host's kernel removes them from a file that changes, and images have them. The others
//! get names of the `user` namespace, which the guest can reach under its own names alone.

use std::io;

use virtiofsd::passthrough::xattrmap::XattrMap;

/// The rules, of which the first that matches counts. `client` is for names that the guest uses,
/// `server` for names that files have.
const RULES: &str = "
    /ok/all/security.capability/security.capability/
    /prefix/all/trusted./user.virtiofs./
    /prefix/client/security./user.virtiofs./
    /bad/client/user.virtiofs.//
    /bad/server//trusted./
    /bad/server//security./
    /ok/all///
";

pub fn map() -> io::Result<XattrMap> {
    XattrMap::try_from(RULES)
        .map_err(|error| io::Error::other(format!("rules of extended attributes: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::client::{Answer, Client};
    use std::ffi::CStr;
    use virtiofsd::passthrough::xattrmap::AppliedRule;

    fn on_host(name: &CStr) -> Option<Vec<u8>> {
        match super::map().unwrap().map_client_xattr(name).unwrap() {
            AppliedRule::Pass(name) => Some(name.to_bytes().to_vec()),
            AppliedRule::Deny | AppliedRule::Unsupported => None,
        }
    }

    #[test]
    fn what_the_jail_may_not_set_has_another_name_on_the_host() {
        for (guest, host) in [
            (c"user.a", Some("user.a")),
            (c"trusted.a", Some("user.virtiofs.trusted.a")),
            (c"security.selinux", Some("user.virtiofs.security.selinux")),
            (c"security.capability", Some("security.capability")),
            (c"system.posix_acl_access", Some("system.posix_acl_access")),
            (c"user.virtiofs.trusted.a", None),
            (c"user.virtiofs.security.capability", None),
        ] {
            let expected = host.map(|name| name.as_bytes().to_vec());
            assert_eq!(on_host(guest), expected, "{guest:?}");
        }
    }

    #[test]
    fn the_hosts_own_names_are_hidden() {
        let names = b"user.a\0trusted.overlay.opaque\0user.virtiofs.trusted.a\0security.ima\0\
            security.capability\0user.virtiofs.security.b\0";
        let shown = super::map().unwrap().map_server_xattrlist(names.to_vec());
        let expected = b"user.a\0trusted.a\0security.capability\0security.b\0";
        assert_eq!(shown.unwrap(), expected);
    }

    fn set(guest: &mut Client, inode: u64, name: &str, value: &[u8]) -> Answer {
        let mut body = (value.len() as u32).to_ne_bytes().to_vec();
        body.extend([0; 12]);
        body.extend_from_slice(format!("{name}\0").as_bytes());
        body.extend_from_slice(value);
        guest.call(21, inode, &body)
    }

    fn get(guest: &mut Client, inode: u64, name: &str) -> Answer {
        let mut body = 100_u32.to_ne_bytes().to_vec();
        body.extend([0; 4]);
        body.extend_from_slice(format!("{name}\0").as_bytes());
        guest.call(22, inode, &body)
    }

    #[test]
    fn a_guest_reads_what_it_set_and_sets_nothing_by_the_hosts_name() {
        let mut guest = Client::new();
        std::fs::write(guest.path("file"), "text").unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        for name in ["trusted.a", "security.b"] {
            assert_eq!(set(&mut guest, inode, name, b"value"), Ok(Vec::new()));
            assert_eq!(get(&mut guest, inode, name), Ok(b"value".to_vec()));
            let hosts = format!("user.virtiofs.{name}");
            let denied = set(&mut guest, inode, &hosts, b"other");
            assert_eq!(denied, Err(libc::EPERM));
            assert_eq!(get(&mut guest, inode, &hosts), Err(libc::ENODATA));
        }
    }
}
