//! Copies of volumes that the host updates as a whole (see the protocol's `UpdateVolume`). The
//! agent makes an update as kubelet does, so that a program that watches the copy sees the same
//! events: the new files come in a directory of their own, and then the link `..data` is exchanged.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{MountFlags, mount};
use rvm_protocol::agent::{UpdateVolumeRequest, VolumeFile};
use rvm_protocol::{ContainerId, VOLUMES_DIR};
use tokio::sync::Mutex;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// The files that are written before other tasks get their turn.
const BATCH: usize = 32;

/// `S_IFDIR`, and the bits of a mode that say what kind of file it is.
const DIRECTORY: u32 = 0o040_000;
const KIND: u32 = 0o170_000;

/// The copies, one update at a time; the flag says whether their file system is mounted. A copy of
/// this is another handle.
#[derive(Clone, Default)]
pub struct Copies(Arc<Mutex<bool>>);

impl Copies {
    /// Makes or updates a copy for a container, which need not exist yet.
    pub async fn update(
        &self,
        container: &ContainerId,
        request: &UpdateVolumeRequest,
    ) -> io::Result<()> {
        let mut is_mounted = self.0.lock().await;
        if !*is_mounted {
            mount_tmpfs()?;
            *is_mounted = true;
        }
        let dir = of_container(container).join(request.volume.to_string());
        update(&dir, request).await
    }

    /// Removes the copies of a container, if there are any.
    pub async fn remove(&self, container: &ContainerId) {
        let is_mounted = self.0.lock().await;
        if *is_mounted {
            let _ = fs::remove_dir_all(of_container(container));
        }
    }
}

fn of_container(id: &ContainerId) -> PathBuf {
    Path::new(VOLUMES_DIR).join(id.as_str())
}

fn mount_tmpfs() -> io::Result<()> {
    fs::create_dir_all(VOLUMES_DIR)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(
        "volumes",
        VOLUMES_DIR,
        "tmpfs",
        flags,
        Some(c"mode=711"),
    )?)
}

pub(super) async fn update(dir: &Path, request: &UpdateVolumeRequest) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if let Some(root) = request.root.as_ref() {
        set_owner(dir, root)?;
    }
    let version = plain(&request.version)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.as_deref() != Some(version) {
        write(&dir.join(version), &request.files).await?;
        symlink(version, dir.join(NEW_DATA))?;
        fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    }
    update_links(dir, request)?;
    match old {
        Some(old) if old != version => fs::remove_dir_all(dir.join(old)),
        _ => Ok(()),
    }
}

/// Writes the files of a version to a new directory.
async fn write(dir: &Path, files: &[VolumeFile]) -> io::Result<()> {
    // An earlier update may have been cut off.
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir)?;
    for (count, file) in files.iter().enumerate() {
        let path = dir.join(inside(&file.path)?);
        match file.mode & KIND {
            DIRECTORY => fs::create_dir(&path)?,
            _ => fs::write(&path, &file.content)?,
        }
        set_owner(&path, file)?;
        if count % BATCH == BATCH - 1 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn set_owner(path: &Path, file: &VolumeFile) -> io::Result<()> {
    chown(path, Some(file.uid), Some(file.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(file.mode & !KIND))
}

/// Makes the links by which programs know the files, and removes those that are no longer wanted.
fn update_links(dir: &Path, request: &UpdateVolumeRequest) -> io::Result<()> {
    for link in &request.links {
        let path = dir.join(plain(&link.name)?);
        if fs::read_link(&path).is_ok_and(|target| target == Path::new(&link.target)) {
            continue;
        }
        let _ = fs::remove_file(&path);
        symlink(&link.target, &path)?;
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let is_wanted = |wanted: &str| name == wanted;
        let is_inner = name.to_str().is_some_and(|name| name.starts_with(".."));
        if !is_inner && !request.links.iter().any(|link| is_wanted(&link.name)) {
            fs::remove_file(dir.join(name))?;
        }
    }
    Ok(())
}

/// Takes a path that is one name.
fn plain(name: &str) -> io::Result<&Path> {
    let path = inside(name)?;
    match path.components().count() {
        1 => Ok(path),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Takes a path that leads nowhere but below its directory.
fn inside(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    let is_below = |part: Component<'_>| matches!(part, Component::Normal(_));
    match path.components().all(is_below) && path.components().next().is_some() {
        true => Ok(path),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_protocol::agent::VolumeLink;

    fn request(version: &str, files: &[(&str, &str)]) -> UpdateVolumeRequest {
        let file = |(path, text): &(&str, &str)| VolumeFile {
            path: (*path).to_owned(),
            mode: 0o100_640,
            content: text.as_bytes().to_owned(),
            ..Default::default()
        };
        let link = |(path, _): &(&str, &str)| VolumeLink {
            name: (*path).to_owned(),
            target: format!("..data/{path}"),
            ..Default::default()
        };
        UpdateVolumeRequest {
            version: version.to_owned(),
            files: files.iter().map(file).collect(),
            links: files.iter().map(link).collect(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn an_update_exchanges_all_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name));
        let first = request("..1", &[("a", "one"), ("b", "one")]);
        update(dir.path(), &first).await.unwrap();
        assert_eq!(read("a").unwrap(), "one");
        let second = request("..2", &[("a", "two"), ("c", "two")]);
        update(dir.path(), &second).await.unwrap();
        assert_eq!(
            (read("a").unwrap(), read("c").unwrap()),
            ("two".into(), "two".into())
        );
        assert!(read("b").is_err() && !dir.path().join("..1").exists());
        let mode = fs::metadata(dir.path().join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(fs::symlink_metadata(dir.path().join("b")).is_err());
    }

    #[tokio::test]
    async fn nothing_is_written_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../../x", ""] {
            let request = request("..1", &[(bad, "")]);
            assert!(
                update(&dir.path().join("v"), &request).await.is_err(),
                "{bad}"
            );
        }
        let request = request("a/b", &[]);
        assert!(update(&dir.path().join("v"), &request).await.is_err());
    }
}
