# What both trials of the package need; sourced.
# shellcheck shell=bash

# What is in a Debian: paths with type, mode and owner, the contents of /etc, users and groups with who is in them. Not
# the package manager's own books, its caches and logs, backups of the files of users, and what changes by itself.
listing() { # root
  (
    cd "$1" || exit
    find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp -o -path ./root \
      -o -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache -o -path ./var/tmp -o -path ./home \
      -o -path ./var/lib/systemd/timers -o -path ./var/lib/systemd/random-seed \
      -o -name 'passwd-' -o -name 'group-' -o -name 'shadow-' -o -name 'gshadow-' -o -name '.pwd.lock' \) -prune \
      -o -printf '%p %y %m %U %G\n'
    find etc -type f ! -name '*-' -exec sha256sum {} +
    sed 's/^/user /' etc/passwd
    sed 's/^/group /' etc/group
  ) | LC_ALL=C sort
}

# A package of a higher version whose configuration file differs too, so that an owner's change is put to the test.
with_other_conffile() { # deb new-deb
  local unpacked
  unpacked=$(mktemp -d)
  dpkg-deb --raw-extract "$1" "$unpacked"
  echo '# A line that a later version of the package has.' >>"$unpacked/etc/tributary/tributary.toml"
  dpkg-deb --root-owner-group -Zgzip --build "$unpacked" "$2" >/dev/null
  rm -rf "$unpacked"
}
