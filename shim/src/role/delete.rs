//! `delete`: cleans up after a daemon that is gone. containerd runs it once for each container.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message as _;
use protobuf::well_known_types::timestamp::Timestamp;
use rvm_sandbox::container::ending::end_process;
use rvm_sandbox::container::lifecycle;
use rvm_sandbox::monitor::EXIT_MACHINE_GONE;
use rvm_sandbox::state::{State, StateError, Store};
use rvm_sys::fault_point;

use crate::invocation::flags::Flags;
use crate::sandbox_bundle::files;
use crate::{bundle, rootfs};

/// Removes a container whose daemon is gone, and answers containerd with its exit.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let dir = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir()?.with_file_name(&flags.id),
    };
    let state = match bundle::find_state(&dir) {
        Some(path) => remove_container(&path)?,
        None => None,
    };
    fault_point!("shim.delete.removed")?;
    rootfs::unmount_all(&dir)?;
    files::unmount(&dir)?;
    fault_point!("shim.delete.unmounted")?;
    bundle::remove_dead_socket(&dir);
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

/// Removes the container whose state is in a directory; returns the state, if it can be read.
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
    runtime.block_on(async {
        if let Some(daemon) = state.as_ref().and_then(|state| state.monitor) {
            // It is gone, or hangs so that containerd has given it up.
            end_process(daemon, Duration::ZERO).await?;
        }
        lifecycle::delete(&record, true).await
    })?;
    Ok(state)
}
