# The first process of a world: namespaces for one engine. Called by world.rs, in new mount, network and
# process namespaces, as: sh world.sh DIR DIST [ROOT]
# DIR is the test's directory, DIST the installation under test, ROOT another system's root, in which
# the engine is installed. Prints its pid as the host numbers it when everything is ready. The world
# ends, and every process in it, when standard input does.
set -eu
# Engines write where they stand.
cd "$1"
dir=$1 dist=$2 root=${3-}

# /proc is still the host's.
read -r pid _ </proc/self/stat

if [ -n "$root" ]; then
    new=$dir/system
    mkdir -p "$new" "$dir/system-upper" "$dir/system-work"
    mount -t overlay -o "lowerdir=$root,upperdir=$dir/system-upper,workdir=$dir/system-work" overlay "$new"
    mkdir -p "$new$dir" "$new$dist"
    mount --rbind /dev "$new/dev"
    mount --bind "$dir" "$new$dir"
    mount --bind "$dist" "$new$dist"
else
    new=
fi

mount -t proc proc "$new/proc"
# A new sysfs shows the links of this network namespace.
mkdir "$dir/cgroup"
mount --rbind /sys/fs/cgroup "$dir/cgroup"
mount -t sysfs sysfs "$new/sys"
mount --rbind "$dir/cgroup" "$new/sys/fs/cgroup"
umount -l "$dir/cgroup"
rmdir "$dir/cgroup"
# Nothing of the host's engines, not their sockets either.
mount -t tmpfs -o mode=755 tmpfs "$new/run"
ip link set lo up

if [ -n "$root" ]; then
    cd "$new"
    pivot_root . mnt
    umount -l /mnt
fi

echo "$pid"
# Whoever loses its parent becomes a child of this process, and is reaped by the kernel.
exec env --ignore-signal=CHLD cat >/dev/null
