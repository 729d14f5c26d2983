//! The files that the shim leaves in a bundle, from which a later `start` or `delete` finds the
//! daemon's socket and the container's state.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rvm_sandbox::state;

/// Holds the address of the daemon's socket. containerd 1.x reads it after a restart. A copy lies
/// with the container's state.
const ADDRESS_FILE: &str = "address";

/// Holds the path of the container's state.
const STATE_FILE: &str = "rvm-state";

/// The path in an address such as `unix:///run/containerd/s/1`.
pub fn socket_path(address: &str) -> PathBuf {
    address.trim().trim_start_matches("unix://").into()
}

/// Writes the address of the daemon into a bundle.
pub fn write_address(bundle: &Path, address: &str) -> io::Result<()> {
    fs::write(bundle.join(ADDRESS_FILE), address)
}

/// The address of the daemon that serves the container of a bundle, if it accepts connections.
pub fn served_address(bundle: &Path) -> Option<String> {
    let address = fs::read_to_string(bundle.join(ADDRESS_FILE)).ok()?;
    is_served(&address).then_some(address)
}

/// Removes the socket whose address is in `dir`, unless a daemon serves it: `delete` of one
/// container of a pod may come while the pod's daemon lives.
pub fn remove_dead_socket(dir: &Path) {
    if let Ok(address) = fs::read_to_string(dir.join(ADDRESS_FILE))
        && !is_served(&address)
    {
        let _ = fs::remove_file(socket_path(&address));
    }
}

fn is_served(address: &str) -> bool {
    UnixStream::connect(socket_path(address)).is_ok()
}

/// Writes into the bundle where the container's state will be, for `delete`, which finds it however
/// far its creation gets.
pub fn remember_state(bundle: &Path, state: &Path) -> io::Result<()> {
    fs::write(bundle.join(STATE_FILE), state.to_string_lossy().as_ref())
}

/// Writes the address of the socket beside the state, for the clean-up of containers whose bundles
/// are gone.
pub fn copy_address(bundle: &Path, container: &state::Container) -> io::Result<()> {
    match fs::read(bundle.join(ADDRESS_FILE)) {
        Ok(address) => fs::write(container.path().join(ADDRESS_FILE), address),
        Err(_) => Ok(()),
    }
}

/// The directory of the container's state, if its creation got so far.
pub fn find_state(bundle: &Path) -> Option<PathBuf> {
    let path = fs::read_to_string(bundle.join(STATE_FILE)).ok()?;
    Some(path.into())
}

/// Undoes [`remember_state`] in the bundle.
pub fn forget_state(bundle: &Path) {
    // containerd removes the whole bundle in any case.
    let _ = fs::remove_file(bundle.join(STATE_FILE));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_is_removed_only_after_its_daemon() {
        let bundle = tempfile::tempdir().unwrap();
        let socket = bundle.path().join("socket");
        let daemon = UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        write_address(bundle.path(), &address).unwrap();
        remove_dead_socket(bundle.path());
        assert_eq!(served_address(bundle.path()), Some(address));
        drop(daemon);
        assert_eq!(served_address(bundle.path()), None);
        remove_dead_socket(bundle.path());
        assert!(!socket.exists());
    }
}
