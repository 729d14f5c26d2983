//! Groups that a container shares with processes that are not its own, another container's perhaps.
//! They bear a mark, an extended attribute, that whoever removes a container finds: such groups are
//! removed once they are empty, and nobody is killed for that.

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::{Cgroup, CgroupError, failed};

/// Trusted attributes are root's to write, in every version of cgroups.
const ATTRIBUTE: &str = "trusted.rvm.shared";

/// Marks groups that a container is about to share.
pub fn mark(cgroup: &Cgroup) -> Result<(), CgroupError> {
    for dir in &cgroup.dirs {
        setxattr(&dir.path, ATTRIBUTE, b"1", XattrFlags::empty())
            .map_err(|errno| failed("mark", &dir.path)(errno.into()))?;
    }
    Ok(())
}

/// Whether the groups bear the mark.
pub fn is_marked(cgroup: &Cgroup) -> bool {
    let mut dirs = cgroup.dirs.iter();
    dirs.any(|dir| getxattr(&dir.path, ATTRIBUTE, &mut [0; 1]).is_ok())
}
