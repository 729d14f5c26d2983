//! `delete`: what is left when a daemon is gone. containerd asks for it container by container.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message as _;
use protobuf::well_known_types::timestamp::Timestamp;
use rvm_sandbox::container::lifecycle;
use rvm_sandbox::monitor::EXIT_MACHINE_GONE;
use rvm_sandbox::state::{State, StateError, Store};

use crate::container;
use crate::flags::Flags;
use crate::launch::{ADDRESS_FILE, socket_path};
use crate::rootfs;
use crate::sandbox_files;

/// Removes a container whose daemon is gone, and says how it ended.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir()?.with_file_name(&flags.id),
    };
    let state = match container::find_state(&bundle) {
        Some(path) => remove_container(&path)?,
        None => None,
    };
    rootfs::unmount_all(&bundle)?;
    sandbox_files::unmount(&bundle)?;
    remove_socket(&bundle);
    let status = state.as_ref().and_then(|state| state.exit_status);
    let response = DeleteResponse {
        pid: state.map_or(0, |state| state.last_pid()),
        exit_status: status.unwrap_or(EXIT_MACHINE_GONE).into(),
        exited_at: Some(Timestamp::from(SystemTime::now())).into(),
        ..Default::default()
    };
    io::stdout()
        .write_all(&response.write_to_bytes()?)
        .context("cannot answer containerd")
}

fn remove_container(path: &Path) -> anyhow::Result<Option<State>> {
    let (Some(root), Some(id)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let store = Store::new(root.to_owned());
    let record = match store.open(&id.to_string_lossy()) {
        Err(StateError::NotFound(_)) => return Ok(None),
        other => other?,
    };
    let state = record.state().ok();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(lifecycle::delete(&record, true))?;
    Ok(state)
}

/// Removes the daemon's socket whose address is in a directory, unless somebody serves it: another
/// container's `delete` may come while the daemon lives.
pub fn remove_socket(dir: &Path) {
    if let Ok(address) = fs::read_to_string(dir.join(ADDRESS_FILE)) {
        let path = socket_path(&address);
        if UnixStream::connect(&path).is_err() {
            let _ = fs::remove_file(path);
        }
    }
}
