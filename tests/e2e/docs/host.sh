# Makes these namespaces (mount, pid, net, uts) a host of its own: host1, root, with a guest's disk at /srv/web1.img. Its
# repositories, configuration and mounts are in the directory $1; the program is $2. Pages begin with one of the stages below.
set -e
exec 2>&1
lab=$1 vbk=$2
unset VBK_RUNTIME_DIR VBK_CACHE_DIR VBK_STATE_DIR VBK_RSH VBK_REMOTE_PATH
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC HOME=/root

# Mounts of tests that run at the same time are none of this host's, and copies of them would keep them busy. Only the copies are
# unmounted: this mount namespace is private. One whose directory has been removed meanwhile is gone already.
awk -v tests="${lab%/*}/" '/ - (fuse[^ ]*|tmpfs) vbk/ || index($5, tests) == 1 { print $5 }' /proc/self/mountinfo | tac |
    while read -r mounted; do
        umount -l "$(printf %b "$mounted")" 2>/dev/null || true
    done

echo host1 >/proc/sys/kernel/hostname
ip link set lo up
mkdir "$lab"/{host,etc}
mount -t tmpfs tmpfs "$lab/etc"
mkdir "$lab"/etc/{new,work}
mount -t overlay -o "lowerdir=/etc,upperdir=$lab/etc/new,workdir=$lab/etc/work" overlay /etc
rm -rf /etc/vbk
mkdir /etc/vbk
mount -t tmpfs tmpfs /usr/local/bin
touch /usr/local/bin/vbk
mount --bind "$vbk" /usr/local/bin/vbk
for place in srv mnt run var/lib var/cache home root; do
    mkdir -p "$lab/host/$place"
done
# The last two may hide $lab.
for place in srv mnt run var/lib var/cache home root; do
    mount --bind "$lab/host/$place" "/$place"
done
cd /root

# No libvirt and no volume groups of the machine.
program() { # NAME: makes a program of standard input
    cat >"/usr/local/bin/$1"
    chmod +x "/usr/local/bin/$1"
}
program virsh <<<'#!/bin/sh'
program lvs <<'END'
#!/bin/sh
echo '{"report": [{"lv": []}]}'
END
program sudo <<'END'
#!/bin/bash
# -u USER COMMAND...
exec runuser -u "$2" -- env HOME="$(getent passwd "$2" | cut -d : -f 6)" "${@:3}"
END
# Another host is this one: the command for it is run here, by the user who is named.
program ssh <<'END'
#!/bin/bash
user=$(grep -oE '[a-z]+@' <<<"$*")
exec sudo -u "${user%@}" bash -c "${!#}"
END

write_file() { # PATH: of standard input
    mkdir -p "$(dirname "$1")"
    cat >"$1"
}

# In the midst of random bytes, which are stored as they are.
marker='random bytes of a file on /srv'

# The disk of a small server: / on ext4, /srv on XFS, swap. Made without a loop device.
make_disk() { # FILE NAME
    local tree=/tmp/vbk-docs-tree-$$-$RANDOM
    mkdir -p $tree/{etc/nginx,srv,root,var/lib/db,var/log}
    printf 'LABEL=root / ext4 defaults 0 1\nLABEL=srv /srv xfs defaults 0 2\n' >$tree/etc/fstab
    printf 'root:x:0:0:root:/root:/bin/bash\nwww:x:33:33:www:/srv:/bin/false\n' >$tree/etc/passwd
    printf 'root:x:0:\nwww:x:33:\n' >$tree/etc/group
    echo "$2" >$tree/etc/hostname
    echo 'worker_processes auto;' >$tree/etc/nginx/nginx.conf
    head -c 12M /dev/urandom >$tree/var/lib/db/table.1
    { head -c 3M /dev/urandom && echo "$marker" && head -c 3M /dev/urandom; } >$tree/noise
    truncate -s 380M "$1"
    printf 'label: gpt\nsize=64MiB\nsize=304MiB\nsize=8MiB, type=swap\n' | sfdisk --quiet "$1"
    printf '/\n0 0\nd--755 0 0\napp d--755 33 33\nindex.html ---644 33 33 %s\ndata.bin ---644 33 33 %s\n$\n$\n' \
        $tree/etc/hostname $tree/noise >$tree.proto
    truncate -s 304M $tree.xfs
    mkfs.xfs -q -L srv -p $tree.proto $tree.xfs
    dd if=$tree.xfs of="$1" bs=1M seek=65 conv=sparse,notrunc status=none
    rm $tree/noise
    mkfs.ext4 -q -F -L root -d $tree -E offset=1048576 "$1" 64M
    truncate -s 8M $tree.swap
    mkswap -q $tree.swap 2>/dev/null
    dd if=$tree.swap of="$1" bs=1M seek=369 conv=sparse,notrunc status=none
    rm -r $tree $tree.proto $tree.xfs $tree.swap
}

edit() { # IMAGE PATH TEXT: a file on the first partition gets this text
    local edited
    edited=$(mktemp)
    chmod 644 "$edited"
    echo "$3" >"$edited"
    printf 'cd %s\nrm %s\nwrite %s %s\n' "$(dirname "$2")" "$(basename "$2")" "$edited" "$(basename "$2")" |
        debugfs -w -f - "$1?offset=1048576" >/dev/null 2>&1
    rm "$edited"
}

until_true() { # COMMAND...: waits until it succeeds
    for _ in {1..500}; do
        if "$@" >/dev/null 2>&1; then
            return
        fi
        sleep 0.02
    done
    echo "it never came true: $*"
    false
}

damage_a_block() { # REPOSITORY: writes over the marker in a block that no later backup changed
    local file offset
    IFS=: read -r file offset _ < <(grep -aboH "$marker" "$1"/store/*.blob)
    printf '%s' "${marker//[a-z]/x}" | dd of="$file" bs=1 seek="$offset" conv=notrunc status=none
}

# A page must take down what it mounted.
must_be_clean() {
    if grep -E ' - (fuse|tmpfs vbk)' /proc/self/mountinfo | grep -E ' /(mnt|srv|run)/'; then
        echo 'the page leaves these mounts'
        exit 1
    fi
}

# A host with a guest's disk and without a repository.
stage_empty() {
    make_disk /srv/web1.img web1
}

# A repository.
stage_repository() {
    stage_empty
    export VBK_REPO=/var/lib/vbk
    vbk -q init
}

# A repository with two backups of one guest, and a change between them.
stage_two_backups() {
    stage_repository
    vbk -q backup web1 /srv/web1.img
    edit /srv/web1.img /etc/nginx/nginx.conf 'worker_processes 4;'
    vbk -q backup web1 /srv/web1.img
}

# The same and a second guest.
stage_two_guests() {
    stage_two_backups
    make_disk /srv/db1.img db1
    vbk -q backup db1 /srv/db1.img
}

# An encrypted repository with one backup. Its recovery key is in /root/recovery.
stage_encrypted() {
    stage_empty
    install -m 600 /dev/stdin /etc/vbk/passphrase <<<'correct horse battery staple'
    export VBK_REPO=/var/lib/vbk VBK_PASSPHRASE_FILE=/etc/vbk/passphrase
    vbk init --encrypt | grep -oE '([0-9A-Z]{5}-)+[0-9A-Z]{5}' >/root/recovery
    vbk -q backup web1 /srv/web1.img
}

# Two hosts more: dc2 with a user vbk, and dc9. Each is this one, and all have the same files.
stage_second_host() {
    stage_empty
    echo '127.0.0.1 dc2 dc2.example.com dc9' >>/etc/hosts
    useradd --system --create-home vbk
    install -d -o vbk /srv/vbk
}
