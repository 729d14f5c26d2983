# Builds an image and runs containers with a Docker daemon inside a container. The first argument
# says how it ends: `stop` tries networks and stops the daemon, `leave` leaves the daemon and a
# container running.
set -e

# A group with processes cannot have controllers for the groups below it.
mkdir /sys/fs/cgroup/init
echo 0 >/sys/fs/cgroup/init/cgroup.procs
sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control

# wait_for SOCKET PROCESS
wait_for() {
    until [ -S "$1" ]; do
        kill -0 "$2"
        sleep 0.2
    done
}

# The Docker daemon would wait 15 seconds for a containerd that it starts itself.
trap '[ $? = 0 ] || tail -n 5 /tmp/containerd.log /tmp/log >&2' EXIT
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >/tmp/containerd.toml
containerd --config /tmp/containerd.toml >/tmp/containerd.log 2>&1 &
containerd=$!
wait_for /run/containerd/containerd.sock $containerd
dockerd --containerd /run/containerd/containerd.sock --storage-driver overlay2 \
    --data-root /data/docker --host unix:///run/docker.sock >/tmp/log 2>&1 &
daemon=$!
export DOCKER_HOST=unix:///run/docker.sock
wait_for /run/docker.sock $daemon

mkdir /content
echo first >/content/first
tar -C / -c bin content | docker import --change 'ENV PATH=/bin' - base >/dev/null
mkdir /tmp/context
cd /tmp/context
echo page >index.html
cat >Dockerfile <<END
FROM base
RUN rm -r /bin/yes /content && mkdir /content && echo second >/content/second
COPY index.html /www/
CMD ["busybox", "httpd", "-f", "-h", "/www"]
END
docker build --quiet --tag web . >/dev/null
see='echo /content/*; ls /bin/yes 2>/dev/null || echo removed; cat /sys/fs/cgroup/memory.max'

if [ "$1" = leave ]; then
    docker run --detach --name web --memory 64m web >/dev/null
    docker exec web sh -c "$see"
    exit 0
fi

# A neighbour that knows no way back but to this container.
ip netns add far
ip link add near type veth peer name eth0 netns far
ip address add 192.0.2.1/24 dev near
ip link set near up
ip -n far address add 192.0.2.2/24 dev eth0
ip -n far link set eth0 up
echo beyond >/content/index.html
ip netns exec far busybox httpd -h /content

docker network create net >/dev/null
docker run --detach --name web --stop-signal KILL --network net --publish 8080:80 web >/dev/null
get='busybox wget -q -O -'
docker run --rm --memory 64m --network net web sh -c "$see; $get http://web/; $get http://192.0.2.2/"
echo "published $($get http://127.0.0.1:8080/)"

kill $daemon
wait $daemon
kill $containerd
wait $containerd
echo "stopped with $(grep -c '^overlay' /proc/mounts) mounts and $(ls -d /sys/fs/cgroup/docker/*/ 2>/dev/null | wc -l) groups"
