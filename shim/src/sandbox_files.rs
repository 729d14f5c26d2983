//! The files that tell a pod's containers of names: /etc/hostname, /etc/hosts and /etc/resolv.conf.
//! containerd's CRI makes them where it makes the sandbox itself. Where it has the shim make the
//! sandbox, it leaves them to the shim, and containers come without.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cri::{DNSConfig, PodSandboxConfig};

/// Where they are in the sandbox's bundle, and where in its containers.
const FILES: [(&str, &str); 3] = [
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
];

/// The directory of a sandbox's bundle that holds them.
const DIR: &str = "files";

/// Makes the files of a sandbox; returns where.
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
        text if text.is_empty() => of_host("/etc/resolv.conf")?,
        text => text,
    };
    let texts = [format!("{hostname}\n"), of_host("/etc/hosts")?, resolver];
    for ((name, _), text) in FILES.iter().zip(texts) {
        fs::write(dir.join(name), text)?;
    }
    Ok(dir)
}

fn of_host(path: &str) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// See resolv.conf(5).
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

/// Adds the files to the configuration of a container, where it has none of its own.
pub fn add(dir: &Path, bundle: &Path) -> io::Result<()> {
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let mounts = &mut config["mounts"];
    if mounts.is_null() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else {
        // What is wrong with it is told when the container is made.
        return Ok(());
    };
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
        let own = json!({ "mounts": [{ "destination": "/etc/hosts", "source": "/own" }] });
        fs::write(bundle.path().join("config.json"), own.to_string()).unwrap();
        add(&dir, bundle.path()).unwrap();
        let text = fs::read(bundle.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0]["source"], "/own");
        assert_eq!(mounts[1]["source"], dir.join("hostname").to_str().unwrap());
    }
}
