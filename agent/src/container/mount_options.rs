//! Parses the options of a mount in config.json: those of mount(8), and a few of runc's own.

use rvm_sys::mount::{AttrChange, attr};

/// Options by what they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `Some(true)` for `rbind`, `Some(false)` for `bind`.
    pub bind: Option<bool>,
    /// Change the attributes of an existing mount.
    pub remount: bool,
    pub attributes: AttrChange,
    /// Attributes of the mount and all below it.
    pub recursive: AttrChange,
    /// In the given order, `MS_*` with `MS_REC`.
    pub propagation: Vec<u64>,
    /// Flags of the file system itself: `sync`, `dirsync`, `lazytime`, …
    pub superblock: Vec<&'static str>,
    /// `tmpcopyup`
    pub copy_up: bool,
    /// `Some(true)` for `ridmap`, `Some(false)` for `idmap`.
    pub idmap: Option<bool>,
    /// Options of the file system itself.
    pub data: Vec<(String, Option<String>)>,
}

enum Meaning {
    Set(u64),
    Clear(u64),
    /// A value of the access time field.
    Atime(u64),
    Propagation(u64),
    Superblock(&'static str),
    /// Accepted; the default anyway.
    Nothing,
}

use Meaning::{Atime, Clear, Nothing, Propagation, Set, Superblock};

/// Parses a list of options. A later one overrides an earlier one.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    // Some engines write several options in one, as mount(8) takes them.
    for option in options.iter().flat_map(|option| option.split(',')) {
        parsed.add(option);
    }
    parsed
}

impl MountOptions {
    fn add(&mut self, option: &str) {
        match option {
            "" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            _ => match meaning(option) {
                Some(meaning) => self.apply(meaning),
                None => self.add_recursive_or_data(option),
            },
        }
    }

    fn apply(&mut self, meaning: Meaning) {
        match meaning {
            Propagation(flags) => self.propagation.push(flags),
            Superblock(flag) => {
                let opposite = opposite_flag(flag);
                self.superblock
                    .retain(|other| *other != flag && *other != opposite);
                self.superblock.push(flag);
            }
            other => change(&mut self.attributes, &other),
        }
    }

    /// `r` before an attribute applies it to all mounts below; any other option is the file
    /// system's.
    fn add_recursive_or_data(&mut self, option: &str) {
        if let Some(meaning @ (Set(_) | Clear(_) | Atime(_))) =
            option.strip_prefix('r').and_then(meaning)
        {
            change(&mut self.recursive, &meaning);
            return;
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (option, None),
        };
        self.data.push((key.to_owned(), value));
    }
}

fn change(attributes: &mut AttrChange, meaning: &Meaning) {
    match meaning {
        Set(bits) => {
            attributes.set |= bits;
            attributes.clear &= !bits;
        }
        Clear(bits) => {
            attributes.set &= !bits;
            attributes.clear |= bits;
        }
        Atime(value) => {
            attributes.set = attributes.set & !attr::ATIME_MASK | value;
            attributes.clear |= attr::ATIME_MASK;
        }
        Propagation(_) | Superblock(_) | Nothing => {}
    }
}

fn opposite_flag(flag: &str) -> &'static str {
    match flag {
        "sync" => "async",
        "async" => "sync",
        "lazytime" => "nolazytime",
        "nolazytime" => "lazytime",
        _ => "",
    }
}

fn meaning(option: &str) -> Option<Meaning> {
    Some(match option {
        "ro" => Set(attr::RDONLY),
        "rw" => Clear(attr::RDONLY),
        "nosuid" => Set(attr::NOSUID),
        "suid" => Clear(attr::NOSUID),
        "nodev" => Set(attr::NODEV),
        "dev" => Clear(attr::NODEV),
        "noexec" => Set(attr::NOEXEC),
        "exec" => Clear(attr::NOEXEC),
        "nodiratime" => Set(attr::NODIRATIME),
        "diratime" => Clear(attr::NODIRATIME),
        "nosymfollow" => Set(attr::NOSYMFOLLOW),
        "symfollow" => Clear(attr::NOSYMFOLLOW),
        "noatime" => Atime(attr::NOATIME),
        "strictatime" => Atime(attr::STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Atime(0),
        "sync" => Superblock("sync"),
        "async" => Superblock("async"),
        "dirsync" => Superblock("dirsync"),
        "lazytime" => Superblock("lazytime"),
        "nolazytime" => Superblock("nolazytime"),
        "mand" => Superblock("mand"),
        "nomand" => Superblock("nomand"),
        "shared" => Propagation(libc::MS_SHARED),
        "slave" => Propagation(libc::MS_SLAVE),
        "private" => Propagation(libc::MS_PRIVATE),
        "unbindable" => Propagation(libc::MS_UNBINDABLE),
        "rshared" => Propagation(libc::MS_SHARED | libc::MS_REC),
        "rslave" => Propagation(libc::MS_SLAVE | libc::MS_REC),
        "rprivate" => Propagation(libc::MS_PRIVATE | libc::MS_REC),
        "runbindable" => Propagation(libc::MS_UNBINDABLE | libc::MS_REC),
        // Engines write these; they name the default.
        "defaults" | "loud" | "silent" | "iversion" | "noiversion" => Nothing,
        _ => return None,
    })
}

/// The flags of a propagation by its name in `rootfsPropagation`.
pub fn propagation(name: &str) -> Option<u64> {
    match meaning(name) {
        Some(Propagation(flags)) => Some(flags),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> MountOptions {
        parse(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = parsed(&["nosuid", "strictatime", "mode=755", "size=65536k", "noswap"]);
        assert_eq!(options.attributes.set, attr::NOSUID | attr::STRICTATIME);
        assert_eq!(options.attributes.clear, attr::ATIME_MASK);
        let data = options
            .data
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()));
        assert_eq!(
            data.collect::<Vec<_>>(),
            [
                ("mode", Some("755")),
                ("size", Some("65536k")),
                ("noswap", None)
            ]
        );
    }

    #[test]
    fn the_last_of_two_opposites_holds() {
        assert_eq!(
            parsed(&["ro", "rw"]).attributes,
            AttrChange {
                set: 0,
                clear: attr::RDONLY
            }
        );
        assert_eq!(
            parsed(&["rw", "ro"]).attributes,
            AttrChange {
                set: attr::RDONLY,
                clear: 0
            }
        );
        assert_eq!(parsed(&["sync", "async"]).superblock, ["async"]);
        assert_eq!(parsed(&["noatime", "relatime"]).attributes.set, 0);
    }

    #[test]
    fn an_r_makes_an_attribute_recursive_but_not_a_propagation() {
        let options = parsed(&["rbind", "rro", "rnoatime", "rslave", "relatime"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive.set, attr::RDONLY | attr::NOATIME);
        assert_eq!(options.propagation, [libc::MS_SLAVE | libc::MS_REC]);
        assert_eq!(options.attributes.clear, attr::ATIME_MASK);
        assert!(options.data.is_empty());
    }

    #[test]
    fn several_options_may_share_a_string() {
        assert_eq!(
            parsed(&["nosuid,nodev"]).attributes.set,
            attr::NOSUID | attr::NODEV
        );
    }

    #[test]
    fn rootfs_propagation_has_the_same_names() {
        assert_eq!(propagation("rslave"), Some(libc::MS_SLAVE | libc::MS_REC));
        assert_eq!(propagation("ro"), None);
    }
}
