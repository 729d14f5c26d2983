//! The files that the containers of a pod share: /etc/hostname, /etc/hosts, /etc/resolv.conf and
//! the memory at /dev/shm. Where containerd's CRI plugin makes the sandbox, it provides them. Where
//! the shim makes the sandbox, containerd leaves them to the shim: the containers' config.json
//! names none, or a /dev/shm of their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use crate::messages::cri::{DNSConfig, PodSandboxConfig};
use crate::rootfs::{self, RootfsError};

/// The names of the files in the sandbox's bundle, and their paths in containers.
const FILES: [(&str, &str); 3] = [
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
];

/// The directory in the sandbox's bundle that holds the files.
const DIR: &str = "files";

/// The shared memory's name in that directory, and its path in containers.
const SHM: (&str, &str) = ("shm", "/dev/shm");

/// The size that containerd gives to a pod's shared memory.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=65536k";

/// Creates the files of a sandbox; returns their directory.
pub fn write(bundle: &Path, config: &PodSandboxConfig) -> io::Result<PathBuf> {
    let dir = bundle.join(DIR);
    fs::create_dir_all(&dir)?;
    let hostname = match config.hostname.as_str() {
        "" => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        name => name.to_owned(),
    };
    let resolver = match resolver(&config.dns_config) {
        text if text.is_empty() => read_host("/etc/resolv.conf")?,
        text => text,
    };
    let texts = [format!("{hostname}\n"), read_host("/etc/hosts")?, resolver];
    for ((name, _), text) in FILES.iter().zip(texts) {
        fs::write(dir.join(name), text)?;
    }
    let shm = dir.join(SHM.0);
    fs::create_dir_all(&shm)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", &shm, "tmpfs", flags, Some(SHM_OPTIONS))?;
    Ok(dir)
}

/// Unmounts the shared memory in a bundle. It is no error if it is not mounted.
pub fn unmount(bundle: &Path) -> Result<(), RootfsError> {
    rootfs::unmount_path(&bundle.join(DIR).join(SHM.0))
}

/// A file of the host; empty if there is none.
fn read_host(path: &str) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// The text of a resolv.conf(5).
fn resolver(dns: &DNSConfig) -> String {
    let mut text = String::new();
    let mut line = |keyword: &str, words: &str| text += &format!("{keyword} {words}\n");
    if !dns.searches.is_empty() {
        line("search", &dns.searches.join(" "));
    }
    for server in &dns.servers {
        line("nameserver", server);
    }
    if !dns.options.is_empty() {
        line("options", &dns.options.join(" "));
    }
    text
}

/// Adds mounts of the files in `dir` to the config.json of a container, where it has no mount for
/// the same path; a tmpfs at /dev/shm, which the CRI plugin puts there for want of a sandbox's, is
/// replaced.
pub fn add(dir: &Path, bundle: &Path) -> io::Result<()> {
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let mounts = &mut config["mounts"];
    if mounts.is_null() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else {
        // Loading the bundle reports what is wrong with it.
        return Ok(());
    };
    let (name, target) = SHM;
    let is_own = |mount: &&mut Value| mount["destination"] == target && mount["type"] == "tmpfs";
    for mount in mounts.iter_mut().filter(is_own) {
        *mount = json!({
            "destination": target, "type": "bind", "source": dir.join(name),
            "options": ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"],
        });
    }
    for (name, destination) in FILES {
        if !mounts
            .iter()
            .any(|mount| mount["destination"] == destination)
        {
            mounts.push(json!({
                "destination": destination, "type": "bind", "source": dir.join(name),
                "options": ["rbind", "rprivate", "rw"],
            }));
        }
    }
    fs::write(&path, config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_the_files_that_it_does_not_have() {
        let bundle = tempfile::tempdir().unwrap();
        let mut config = PodSandboxConfig::new();
        config.hostname = "web".to_owned();
        let dns = config.dns_config.mut_or_insert_default();
        dns.servers.push("10.0.0.1".to_owned());
        dns.options = vec!["ndots:5".to_owned(), "edns0".to_owned()];
        let dir = write(bundle.path(), &config).unwrap();
        let text = fs::read_to_string(dir.join("resolv.conf")).unwrap();
        assert_eq!(text, "nameserver 10.0.0.1\noptions ndots:5 edns0\n");
        let own = json!({ "mounts": [
            { "destination": "/etc/hosts", "source": "/own" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
        ] });
        fs::write(bundle.path().join("config.json"), own.to_string()).unwrap();
        add(&dir, bundle.path()).unwrap();
        let text = fs::read(bundle.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[0]["source"], "/own");
        assert_eq!(mounts[1]["source"], dir.join("shm").to_str().unwrap());
        assert_eq!(mounts[2]["source"], dir.join("hostname").to_str().unwrap());
        unmount(bundle.path()).unwrap();
        unmount(bundle.path()).unwrap();
    }

    #[test]
    fn shared_memory_from_a_volume_is_kept() {
        let bundle = tempfile::tempdir().unwrap();
        let own = json!({ "mounts": [
            { "destination": "/dev/shm", "type": "bind", "source": "/volume" },
        ] });
        fs::write(bundle.path().join("config.json"), own.to_string()).unwrap();
        add(Path::new("/files"), bundle.path()).unwrap();
        let text = fs::read(bundle.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["mounts"][0]["source"], "/volume");
    }
}
