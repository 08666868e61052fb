# Stands for OpenWrt's /lib/functions.sh: what a package's scripts reach of it, with the same effects. Written for the
# test from what OpenWrt documents; theirs has another licence.

info() { echo "$IPKG_INSTROOT/usr/lib/opkg/info/$1"; }
package_of() { basename "${1%.*}"; }
services_of() { sed -n '/^\/etc\/init\.d\//p' "$(info "$1.list")"; }

group_exists() { grep -q "^$1:" "$IPKG_INSTROOT/etc/group"; }
user_exists() { grep -q "^$1:" "$IPKG_INSTROOT/etc/passwd"; }

free_id() { # FILE
	id=32768
	while cut -d: -f3 "$1" | grep -qx "$id"; do id=$((id + 1)); done
	echo "$id"
}

group_add_next() {
	group_exists "$1" || echo "$1:x:$(free_id "$IPKG_INSTROOT/etc/group"):" >>"$IPKG_INSTROOT/etc/group"
	sed -n "s/^$1:[^:]*:\([0-9]*\):.*/\1/p" "$IPKG_INSTROOT/etc/group"
}

user_add() { # NAME UID GID
	uid=${2:-$(free_id "$IPKG_INSTROOT/etc/passwd")}
	echo "$1:x:$uid:$3:$1:/var/run/$1:/bin/false" >>"$IPKG_INSTROOT/etc/passwd"
	echo "$1:x:0:0:99999:7:::" >>"$IPKG_INSTROOT/etc/shadow"
}

add_required_users() { # PACKAGE
	for pair in $(sed -n 's/^Require-User: *//p' "$(info "$1.control")"); do
		gid=$(group_add_next "${pair#*:}")
		user_exists "${pair%:*}" || user_add "${pair%:*}" '' "$gid"
	done
}

in_image() { sh "$IPKG_INSTROOT/etc/rc.common" "$IPKG_INSTROOT$1" "$2"; }

default_postinst() {
	package=$(package_of "$1")
	add_required_users "$package"
	for service in $(services_of "$package"); do
		if [ -n "$IPKG_INSTROOT" ]; then
			in_image "$service" enable
			continue
		fi
		[ "$PKG_UPGRADE" = 1 ] || "$service" enable
		"$service" start
	done
	return 0
}

default_prerm() {
	for service in $(services_of "$(package_of "$1")"); do
		if [ -n "$IPKG_INSTROOT" ]; then
			in_image "$service" disable
			continue
		fi
		[ "$PKG_UPGRADE" = 1 ] || "$service" disable
		"$service" stop
	done
	return 0
}
