"""Everyday tools print on the mount what they print on the disk below.

Each script runs in both places, in an empty directory. What it prints has to be the same, so that
the disk tells what is right, not we.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.programs.programs import as_root, sh

# Where the package has another name than the program.
PACKAGES = {"ar": "binutils", "setcap": "libcap2-bin", "setfacl": "acl", "setfattr": "attr"}
SCRIPTS = {
    "sed(1) -i replaces the file and keeps its mode": """
        printf 'a\\nb\\n' > f; ln f hard; chmod 640 f; sed -i.bak 's/a/x/' f
        head f hard f.bak; stat -c '%n %a %h %s' f hard f.bak; ls -A
    """,
    "sed(1) --follow-symlinks": """
        echo a > f; ln -s f l; sed -i --follow-symlinks s/a/b/ l; readlink l; cat f
    """,
    "sort(1) -o writes what it read": """
        seq 9000 | sort -R > f; sort -n -o f f; md5sum f; sort -c -n f; ls -A
        sort -S 64k -T . -rn f | sed -n 1,3p
    """,
    "dd(1) conv=notrunc writes into the middle": """
        seq -f %07.0f 12500 > f
        printf 'XX' | dd of=f bs=1 seek=7 conv=notrunc status=none; head -c 16 f; stat -c %s f
        dd if=f of=g bs=4096 skip=1 seek=3 count=2 conv=sparse,fsync status=none; md5sum g
        dd if=/dev/null of=f bs=1 seek=50 status=none; stat -c %s f
        dd if=g of=f oflag=append conv=notrunc status=none; md5sum f
    """,
    "dd(1) with direct input and output": """
        seq -f 'direct %08.0f' 196608 > f
        dd if=f of=g bs=64k iflag=direct oflag=direct status=none; cmp f g
        dd if=/dev/zero of=g bs=4k count=3 seek=5 oflag=direct conv=notrunc status=none
        md5sum g
        dd if=g bs=1M iflag=direct status=none | md5sum
        dd if=f of=h bs=100k oflag=sync,dsync status=none 2> /dev/null || true; md5sum h
    """,
    "truncate(1) makes longer and shorter": """
        seq 100 > f; truncate -s 10 f; truncate -s +5 f; od -c f; truncate -s '%4096' f
        truncate -r f -s +1 g; truncate -s 3G h; stat -c '%n %s' *; tail -c 1 h | od -c
    """,
    "split(1), csplit(1), cat(1)": """
        seq 20000 > f; split -b 10000 f part-; split -n l/3 -d f lines-
        csplit -sz f '/^5000$/' '{*}'
        ls; cat part-* | cmp - f; cat lines-* | cmp - f; cat xx* | cmp - f; wc -l xx*
    """,
    "diff(1), patch(1), with a backup and a reject": """
        mkdir a b; seq 50 > a/f; sed 's/^7$/seven/; 30d' a/f > b/f; echo new > b/n
        echo old > a/o
        diff -ruN a b | sed 's/\\t.*//' > p || true; cp -r a c; cp -r a d
        sed -i 's/^7$/other/' d/f
        (cd c; patch -s -b -p1 < ../p); diff -r b c || true; ls c
        (cd d; patch -s -f -p1 < ../p) || true; ls d; cat d/f.rej; grep -v '^---' p | wc -l
    """,
    "install(1) -D -m -p -b": """
        echo x > f; touch -d 2001-02-03T04:05:06.789 f
        install -D -m 4711 -p f a/b/c; install -b -m 600 f a/b/c; install -d -m 2750 d
        stat -c '%n %a' a/b/* d; stat -c %y f; stat -c %a a
    """,
    "ln(1) replaces links": """
        mkdir d e; ln -s d l; ln -sfn e l; readlink l; ln -sf x d; readlink d/x; ln -sr d/x r
        readlink r; touch f g; ln -f f g; stat -c '%n %h' f g; ln -b f d/x; ls -A d
        ln f f 2>&1 || true; ln d dd 2>&1 || true; ln -L l ll 2>&1 || true; ln -P l lp
        readlink lp
    """,
    "touch(1) sets times to the nanosecond": """
        touch -d 1999-12-31T23:59:59.123456789 f; touch -r f g; touch -a -d @5.5 f
        touch -m -d @-1.25 g; touch -d @4294967297.000000001 h; touch -h -d @9 n 2>&1 || true
        ln -s nowhere l; touch -h -d @77 l; touch -c missing; ls
        stat -c '%n %.9X %.9Y' f g h l; touch -t 203801190314.08 h; stat -c %y h
    """,
    "cp(1) backs up, updates, links and copies parents": """
        mkdir -p a/b t; echo 1 > a/b/f; touch -d @1000 a/b/f; chmod 3711 a/b
        cp --parents a/b/f t; cp -rl a t/hard; cp -rs "$PWD/a" t/soft
        cp -b --suffix=.o a/b/f t/a/b/f
        echo 2 > g; touch -d @500 g; cp -u g a/b/f; cat a/b/f; cp -n g a/b/f; cp -a a/b/f z
        cp -f z g
        mkfifo p; cp -R p q; cp --sparse=always a/b/f s; cp --reflink=auto s r
        cp -rT a t2; cp a a2 2>&1 || true; cp -r a a/b 2>&1 || true
        find . -type f ! -newermt @1000 | sort | xargs stat -c '%n %a %h %Y'
        find . -type f | sort | xargs head; find * -printf '%p %y %m\\n' | sort
    """,
    "mv(1) within one directory tree": """
        mkdir -p d e/f; echo 1 > a; echo 2 > b; mv -b a b; mv -n b d; echo 3 > b; mv -n b d
        mv -T d e/f
        mv e/f/b 'e/f/a b'; mv e e/f 2>&1 || true; mv e/f . ; find . | sort; cat f/*
        mkdir -p x/f/y
        mv f x 2>&1 || true; mv x/f x/f 2>&1 || true; mv f f 2>&1 || true; mv f/ g
        find . | sort
    """,
    "rm(1), rmdir(1), unlink(1)": """
        mkdir -p a/b/c d/e; touch a/f; chmod 0 a/f; rm a 2>&1 || true; rmdir a 2>&1 || true
        rm -rf a; rmdir -p d/e; ls -A; touch -- -x; rm -- -x; mkdir x; unlink x 2>&1 || true
        rm x/. 2>&1 || true; rm -d x; rm missing 2>&1 || true; rm -f missing; ln -s x l; rm l
        ls -A
    """,
    "mkdir(1), chmod(1), umask": """
        umask 027; mkdir -p -m 1777 a/b; mkdir c; touch f; chmod -R u=rwX,go=rX,a+t a
        chmod +x f
        chmod g+s c; mkdir c/d; touch c/g; stat -c '%n %a %F' a a/b c c/d c/g f
        chmod --reference=a f
        stat -c %a f; chmod a=,u+rw,g=u,o-w f; stat -c %a f; mkdir f 2>&1 || true
    """,
    "find(1) by name, size, time, links, type, inode; -exec, -delete": """
        mkdir -p a/b/c x; for i in $(seq 30); do head -c $((i * 100)) /dev/zero > a/b/f$i; done
        ln a/b/f1 x/hard; ln -s ../a x/soft; touch -d '3 days ago' a/b/f2; chmod 4755 a/b/f3
        mkfifo x/p
        find . -size -3 -type f | sort; find . -mtime +2; find . -links 2 -type f | sort
        find . -newer a/b/f2 -name 'f1?' | sort; find . -perm -4000; find -L x -name f5
        find . -type p
        find . -inum "$(stat -c %i a/b/f1)" | sort; find . -empty | sort; find a -depth -type d
        find a -samefile x/hard; find a -type f -exec sed -i '1s/^/x/' {} +; cat a/b/f* | wc -c
        find a -name 'f2*' -exec sh -c 'mv $1 $1.old' - {} \\; ; find a -name '*.old' -delete
        find . -maxdepth 2 -printf '%y %p %l\\n' | sort; find a | wc -l; find a -delete; ls
    """,
    "du(1) and stat(1) count the same blocks and bytes": """
        mkdir -p a/b; head -c 300000 /dev/urandom > a/f; seq 9000 > a/b/g; ln a/f a/b/hard
        sync a/f a/b/g
        total() { find a -type f -printf "%i %$1\\n" | sort -u | awk '{s += $2} END {print s}'; }
        dirs() { find a -type d -printf "%$1\\n" | awk '{s += $1} END {print s}'; }
        echo $(($(du -sb a | cut -f1) - $(total s) - $(dirs s)))
        echo $(($(du -sB512 a | cut -f1) - $(total b) - $(dirs b)))
        stat -c %s a/f a/b/g; du -ab a/b/g; (( $(du -k a/f | cut -f1) >= 290 )) && echo plenty
    """,
    "df(1) and stat(1) -f tell the same space": """
        read -r size avail name <<< "$(df --output=size,avail,target -B1 . | tail -n 1)"
        echo $(($(stat -f -c '%b * %S' .) - size))
        (( avail > 0 && avail <= size )) && echo some
        mountpoint -q "$name" || [[ $name == / ]]; stat -f -c '%l' .; df -i . | wc -l
    """,
    "ls(1), realpath(1), readlink(1)": """
        mkdir -p a/b; ln -s ../.. a/b/up; ln -s a l; ln -s loop loop; echo x > 'a/new
line'; touch a/-n $'a/\\xff'; ls -A1b a; ls -U a | wc -l; stat -c '%A %h %s %N' a/b/up
        realpath --relative-to=. l/b/up/a; basename "$(readlink -f l/b/up/l)"
        cat loop 2>&1 || true
        ls -dF a/* | cat -v; ls -bS a/new* a/-n; realpath -e nothing 2>&1 || true
        touch -d @3 a/3; touch -d @1 a/b; ls -t a | tail -n 2
    """,
    "gzip(1), bzip2(1), xz(1) keep mode, owner and time": """
        seq 9000 > f; chmod 641 f; touch -d @1234567.5 f; for z in gzip bzip2 xz; do
        $z -k f; stat -c '%a %Y' f.*; $z -t f.?z*; rm f.*; done
        gzip f; stat -c '%n %a' f*; zcat f.gz | md5sum; gunzip f; ls
    """,
    "tee(1) -a, shells that append, read and write, and no clobber": """
        echo 1 > f; echo 2 | tee -a f g > /dev/null; exec 3<> f; read -r x <&3
        echo "$x!" >&3; cat f
        set -C; (echo x > f) 2> /dev/null || echo kept; set +C; for i in $(seq 100)
        do echo $i >> g & done
        wait; sort -n g | md5sum; cat f - < g > h; exec 3>&-; : > f; wc -c f; cat < f > f
        wc -c f
        (echo a; exec 4>> f; echo b >&4) > f; cat f; mktemp -p . -d XXXXXX > /dev/null
        ls | wc -l
    """,
    "perl(1), ed(1) and shred(1) change files in place": """
        seq 5 > f; perl -i.bak -pe 's/3/three/' f; cat f f.bak; printf '2d\\nw\\nq\\n' | ed -s f
        chmod 600 f; shred -n 1 -z f; od -c f | head -n 2; shred -u f; ls; cp f.bak g
        perl -e 'open F, "+<g"; flock F, 2; seek F, 4, 0; print F "X"; truncate F, 8; close F'
        cat g
    """,
    "a script, a program and a library of gcc(1) run from here": """
        printf '#!/bin/sh\\necho "$0" "$@"\\n' > s; chmod +x s; ./s 1
        PATH=$PWD:$PATH s 2 | sed 's,.*/,,'
        cp /bin/true t; ./t; chmod -x t; ./t 2>/dev/null || echo $?; mkdir d; (cd d; ../s 3
        basename "$(pwd -P)")
        printf 'int x(void){return 42;}' > x.c; gcc -shared -fPIC -o libx.so x.c
        printf 'int x(void);int main(){return x();}' > m.c
        gcc -o m m.c -L. -lx -Wl,-rpath,'$ORIGIN'
        ./m || echo $?; cd d; rmdir ../d; ls; (echo x > f) 2> /dev/null || echo gone
    """,
    "tar(1) incremental, update, append and delete": """
        mkdir d; echo 1 > d/a; echo 2 > d/b; tar cf t.tar -g snar d; sleep 0.01; echo 3 > d/c
        rm d/a
        echo 22 > d/b; tar cf u.tar -g snar d; tar tf u.tar; tar rf t.tar u.tar; tar uf t.tar d
        tar --delete -f t.tar d/b; tar tf t.tar; mkdir x; tar xf u.tar -g /dev/null -C x
        cat x/d/*
        tar df u.tar && echo same
    """,
    "cpio(1) and ar(1)": """
        mkdir d; echo 1 > d/a; ln d/a d/b; ln -s a d/l; mkfifo d/p; touch -h -d @9 d/*
        mkdir x y
        find d | sort | cpio --quiet -o -H newc > c; (cd x; cpio --quiet -idm < ../c)
        find d | cpio --quiet -pdlm y
        find x y | sort | xargs stat -c '%n %F %h %s' | grep -v direc
        ar rc l.a d/a d/l; ar t l.a; ar d l.a a; ar t l.a; find x -newermt @10 ! -type d
    """,
    "zip(1) and unzip(1)": """
        mkdir d; seq 999 > d/a; ln -s a d/l; echo '#!' > d/run; chmod 750 d/run
        touch -d @1600000000 d/*
        zip -qry z.zip d; zip -qu z.zip d/a || true; zip -qd z.zip d/a; unzip -tq z.zip; mkdir x
        unzip -q z.zip -d x; stat -c '%n %a %s' x/d/*; readlink x/d/l; stat -c %Y x/d/run; ls -A
    """,
    "logrotate(8)": """
        cat > conf <<END
        "$PWD/log" { su $(id -un) $(id -gn)
        rotate 3
        create 0640
        compress
        delaycompress }
        "$PWD/other" { su $(id -un) $(id -gn)
        rotate 2
        copytruncate }
END
        chmod 755 .; chmod 600 conf; exec 3>> other
        for i in 1 2 3 4; do echo $i >> log; echo $i >&3
        /usr/sbin/logrotate -f -s state conf; done
        ls; stat -c '%n %a %s' log* other*; zcat log.*.gz; cat other*
    """,
    "setfattr(1), cp(1), mv(1) and what becomes of attributes": """
        echo x > f; setfattr -n user.a -v 1 f; setfattr -n user.b -v 0x00ff f; mkdir d
        setfattr -n user.d d
        cp f plain; cp -a f kept; cp --preserve=xattr f copied; cp -a d e; mv f g
        getfattr -d -e hex *
        sed -i s/x/y/ g; getfattr -d g; setfattr -x user.a kept
        getfattr --only-values -n user.b kept | od -c
        getfattr -n user.none kept 2>&1 || true; setfattr -n foo.x -v 1 kept 2>&1 || true
        setfattr -n user.x -h -v 1 nothing 2>&1 || true; mkfifo p
        setfattr -n user.x -v 1 p 2>&1 || true
    """,
    "setfacl(1) on files: entries, mask, chmod(1), removal": """
        umask 022; touch f; setfacl -m u:1234:rw,g:55:r f; getfacl -cn f; stat -c %a f
        ls -l f | cut -c1-11
        chmod g-w f; getfacl -cn f; setfacl -m m::rwx f; stat -c %a f; setfacl -x u:1234 f
        getfacl -cn f
        setfacl -m u::r,g::-,o::w f; stat -c %a f; setfacl -b f; getfacl -cn f
        ls -l f | cut -c1-11
        setfacl -d -m u:1:r f 2>&1 || true; ln -s f l; setfacl -m u:7:x l; getfacl -cn f; ln f h
        getfattr -m . -d -e hex f h; setfacl -n -m u:8:rwx,m::r f; getfacl -cn f; cp f c
        getfacl -cn c
    """,
    "setfacl(1) on directories: what is made in them inherits": """
        umask 027; mkdir d; setfacl -m d:u:1234:rwx,d:g:55:rx,d:o::r,u:99:x d; getfacl -cn d
        touch d/f; mkdir d/e d/e/e; mkdir -m 700 d/private; getfacl -cn d/f d/e d/e/e d/private
        mkfifo d/p; ln -s f d/l; cp /bin/true d/program; install -m 640 d/f d/i
        getfacl -cn d/p d/program d/i
        stat -c '%n %a' d d/*; umask 777; touch d/g; getfacl -cn d/g; mv d/e e; getfacl -cn e/e
        setfacl -k d; umask 077; touch d/h; getfacl -cn d d/h; setfacl -d -m m::r e
        getfacl -cn e
    """,
    "setfacl(1), kept by cp(1), mv(1), sed(1) and what restores them": """
        mkdir d; touch d/f; chmod 2750 d; setfacl -m u:1234:rwx,d:u:9:r d
        setfacl -m g:4:w,m::rx d/f
        cp -a d e; getfacl -cnR e; cp -rp d x; getfacl -cnR x; mv e/f e/g
        sed -i 's/^/x/' e/g; getfacl -cn e/g
        getfacl -nR d > saved; setfacl -Rb d; getfacl -cnR d; setfacl --restore=saved
        getfacl -cnR d
        getfacl -n d/f | setfacl --set-file=- x/f; getfacl -cn x/f; cp d/f n; getfacl -cn n
        tar cf t.tar --acls d; rm -r d; tar xf t.tar --acls; getfacl -cnR d
        stat -c '%n %a' d d/*
    """,
}
AS_ROOT = {
    "chown(1) and install(1) -o -g": """
        mkdir d; touch d/f f; ln -s f l; chown -R 1234:5678 d; chown -h 7:8 l
        chown --from=1234 9 d/f
        chmod 6755 f; chown 1 f; install -o 11 -g 12 -m 6711 f g; chgrp 99 d; cp -p g h; cp g i
        stat -c '%n %a %u %g' d d/f f l g h i; chown -L 3 l; stat -c %u f; mknod n c 1 3
        stat -c '%F %t %T' n; mknod b b 7 99; stat -c '%F %t %T' b
    """,
    "setfattr(1) of trusted and security attributes": """
        touch f; setfattr -n trusted.t -v 1 f; setfattr -n security.s -v 2 f; ln -s f l
        setfattr -h -n trusted.l -v 3 l; getfattr -d -m - -h f l; cp -a f g; getfattr -d -m - g
        mkfifo p; setfattr -n trusted.p -v 4 p; getfattr -d -m - p
        setfattr -h -n user.u l 2>&1 || true
    """,
    "setcap(8), lost when the file is written or its owner changes": """
        cp /bin/true t; setcap cap_net_raw+ep t; getcap t; cp -a t u; getcap u; mv t v
        getcap v; ./v
        echo >> v; getcap v; setcap cap_chown=p v; chown 5 v; getcap v; setcap -r u; getcap u
        echo end
        setcap cap_chown=p u; truncate -s 5 u; getcap u; echo end
    """,
}

BY_ROOT = """
    umask 022
    mkdir open private sticky team search; chmod 700 private; chmod 1777 sticky; chmod 2777 team
    chmod 711 search; chown :daemon team; chmod 777 open
    for d in open private sticky team search; do echo $d > $d/root; ln -s root $d/soft; done
    echo secret > open/secret; chmod 600 open/secret; echo run > open/run; chmod 711 open/run
    touch sticky/mine open/theirs open/granted open/masked; chown nobody sticky/mine
    chown daemon open/theirs; chmod 666 open/theirs; cp /bin/true open/program
    chmod 640 open/granted open/masked
    if command -v setfacl > /dev/null; then
    setfacl -m u:nobody:rw open/granted; setfacl -m u:nobody:rwx,m::- open/masked; fi
"""
BY_NOBODY = """
    exec 2>&1; set +e; umask 002
    for d in open private sticky team search; do
        echo "== $d"; ls $d; cat $d/root; cat $d/soft; echo more >> $d/root; touch $d/new
        mkdir $d/made
        ln $d/root $d/hard; ln -s root $d/link; mv $d/root $d/renamed; mv $d/renamed $d/root
        rm -f $d/soft; chmod 600 $d/root; chown nobody $d/root; touch $d/root; touch -d @5 $d/root
        setfattr -n user.x -v 1 $d/root; truncate -s 0 $d/root; stat -c '%n %A %U %G' $d/*
    done
    cat open/secret open/run open/granted open/masked; echo x >> open/granted; echo x >> open/masked
    echo x > open/theirs; touch open/theirs; touch -d @5 open/theirs; chmod 600 open/theirs
    rm -f sticky/mine open/secret; ./open/program; mv open/run sticky; mv sticky/run team
    cp -a search copy; cp -a open/granted team/copied; cp -a open/program team; touch team/own
    chmod 6755 team/own; stat -c '%n %A %U %G' team/*; chgrp daemon team/own; chgrp nogroup team/own
    stat -c '%n %A %U %G' team/own; setfacl -m u:root:r team/own open/theirs; getfacl -p team/own
    rm -rf open private sticky search 2>&1 | sort; find . -printf '%p %M %u %g\\n' | sort
    mkdir ../outside
    test -w private; echo $?; test -x team; echo $?; test -r private/root; echo $?
"""


@pytest.mark.parametrize(
    "name", [*SCRIPTS, *(pytest.param(name, marks=as_root) for name in AS_ROOT)]
)
def test_a_script_prints_what_it_prints_on_the_disk(place: Path, tmp_path: Path, name: str) -> None:
    """As the manual pages have it that the name of each script mentions."""
    for program in re.findall(r"(\w+)\(\d\)", name):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"{program} is missing: apt-get install {PACKAGES.get(program, program)}")
    script = (SCRIPTS | AS_ROOT)[name]
    expected, printed = sh(script, tmp_path), sh(script, place)
    assert printed == expected
    assert expected


@as_root
def test_somebody_else_is_refused_what_they_are_refused_on_the_disk(open_mount: Mount) -> None:
    """path_resolution(7), acl(5): the same files, the same commands, the same complaints."""
    printed = []
    for top in (open_mount.path.parent / "plain/top", open_mount.path / "mount/top"):
        top.mkdir(parents=True)
        sh(BY_ROOT, top)
        printed.append(sh(BY_NOBODY, top, user="nobody").replace(str(top), ""))
    assert printed[1] == printed[0]
    assert "Permission denied" in printed[0]
