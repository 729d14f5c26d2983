# The init of a world: namespaces for one engine. world.rs calls it in new mount, network and
# process namespaces, as: sh world.sh DIR DIST [ROOT]
# DIR is the test's directory, DIST the installation under test, ROOT the root of another system
# with the engine. When everything is ready it prints its pid on the host. The end of standard input
# ends the world with every process in it.
set -eu
# Engines write to their working directory.
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
# Nothing of the host's engines, including their sockets.
mount -t tmpfs -o mode=755 tmpfs "$new/run"
ip link set lo up

if [ -n "$root" ]; then
    cd "$new"
    pivot_root . mnt
    umount -l /mnt
fi

echo "$pid"
# A process that loses its parent becomes a child of this one, and the kernel reaps it.
exec env --ignore-signal=CHLD cat >/dev/null
