# Installs, upgrades and removes a package with dpkg and apt, in a container with Docker's default
# capabilities.
set -e

mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/apt/lists/partial /var/log/apt \
    /var/cache/apt/archives/partial /etc/apt/apt.conf.d /etc/apt/preferences.d /tmp/repository
: >/var/lib/dpkg/status
echo 'deb [trusted=yes] file:/tmp/repository ./' >/etc/apt/sources.list

# package VERSION FILE: makes a package with one file besides those that every version has.
package() {
    mkdir -p /tmp/tree/DEBIAN /tmp/tree/opt/small /tmp/tree/etc
    cat >/tmp/tree/DEBIAN/control <<END
Package: small
Version: $1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: a package
END
    echo /etc/small.conf >/tmp/tree/DEBIAN/conffiles
    printf '#!/bin/sh\nchown daemon /opt/small/program\nchmod 4755 /opt/small/program\n' >/tmp/tree/DEBIAN/postinst
    chmod 755 /tmp/tree/DEBIAN/postinst
    echo "setting = $1" >/tmp/tree/etc/small.conf
    rm -rf /tmp/tree/opt/small/*
    echo "$1" >/tmp/tree/opt/small/program
    echo "$1" >"/tmp/tree/opt/small/$2"
    ln /tmp/tree/opt/small/program /tmp/tree/opt/small/linked
    ln -s program /tmp/tree/opt/small/link
    busybox mkfifo /tmp/tree/opt/small/fifo
    dpkg-deb --build /tmp/tree "/tmp/repository/small_$1.deb" >/dev/null
}

# Every package of the repository, in its index.
index() {
    local file
    for file in small_*.deb; do
        dpkg-deb --field "$file"
        echo "Filename: ./$file"
        echo "Size: $(stat -c %s "$file")"
        echo "SHA256: $(sha256sum "$file" | cut -d ' ' -f 1)"
        echo
    done
}

# Everything that a package has installed.
show() {
    echo "$1: $(dpkg-query --show small), $(echo /opt/small/*), $(cat /opt/small/program)," \
        "$(stat -c '%U %a %h' /opt/small/program), $(cat /etc/small.conf)"
    dpkg --verify small
}

package 1 old
package 2 new
cd /tmp/repository
index >Packages

dpkg --install small_1.deb >/tmp/log
show dpkg
apt-get -q update >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
apt-get -q -y install small >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
show apt
apt-get -q -y purge small >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
ls -d /opt/small /etc/small.conf 2>/dev/null || echo purged
