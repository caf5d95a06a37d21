//! The program on a real kernel: every back end, in network namespaces that need no root.
//!
//! Each test is a shell script inside `unshare --user --map-root-user --net`. There is one user in there, so
//! the sidecar's sockets are told by their mark.

use std::path::PathBuf;
use std::process::Command;

/// What every script starts with: a namespace with a default route, and ways to look at what is in the kernel.
///
/// `saved BACK_END` prints the rules without comments and counters.
const PRELUDE: &str = r#"
set -eu
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export XTABLES_LOCKFILE="$scratch/xtables.lock"

ip link set lo up
ip link add up0 type veth peer name up1
ip link set up1 up
ip link set up0 up
ip addr add 198.18.0.1/24 dev up0
ip route add default via 198.18.0.2
ip -6 addr add fd00:4747::1/64 dev up0 nodad
ip -6 route add default via fd00:4747::2

saved() {
    case $1 in
    nft) nft list ruleset ;;
    *) "$1-save"; "ip6${1#ip}-save" ;;
    esac | grep -v '^#' | sed 's/\[[0-9:]*\]//' || true
}
no_rules() {
    for each in iptables-nft iptables-legacy nft; do
        if saved $each | grep -i weft; then echo "$each still has the rules above"; exit 1; fi
    done
}
fails() {
    if "$@" >"$scratch/out" 2>&1; then cat "$scratch/out"; echo "this succeeded: $*"; exit 1; fi
    cat "$scratch/out"
}
says() {
    grep -q -e "$1" "$scratch/out" || { cat "$scratch/out"; echo "this does not say: $1"; exit 1; }
}
redirect() { "$WEFT_REDIRECT" "$@"; }
flags=--exempt-mark=0x4747
export WEFT_REDIRECT_IPV6=require
"#;

/// Runs a script with the program at `$WEFT_REDIRECT`; a failure shows all that was printed.
fn in_namespace(script: &str) {
    for tool in ["unshare", "setpriv", "ip", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy", "nft"] {
        assert!(is_installed(tool), "this test needs `{tool}`: install util-linux, iproute2, iptables and nftables");
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &format!("{PRELUDE}{script}")])
        .env("WEFT_REDIRECT", env!("CARGO_BIN_EXE_weft-redirect"))
        .output()
        .expect("unshare was found above");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        !err.contains("unshare failed") && !err.contains("/proc/self/uid_map"),
        "this test needs user namespaces: set the sysctls user.max_user_namespaces above 0, \
         kernel.unprivileged_userns_clone to 1 and kernel.apparmor_restrict_unprivileged_userns to 0 where \
         they exist, or run as root\n{err}"
    );
    assert!(output.status.success(), "{}\n--- stdout\n{out}\n--- stderr\n{err}", output.status);
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|directory| directory.join(tool).exists())
}

/// Applied, applied again, proven, shown, removed, removed again.
fn lives_and_leaves_nothing(back_end: &str) {
    in_namespace(&format!(
        r#"
        back_end={back_end}
        flags="$flags --skip-outbound-ports=25,3306-3310 --skip-subnets=10.0.0.0/8,fd00::/8"
        redirect apply $flags --backend=$back_end
        saved $back_end >"$scratch/once"
        grep -iq weft "$scratch/once"
        redirect apply $flags --backend=$back_end
        saved $back_end >"$scratch/twice"
        diff "$scratch/once" "$scratch/twice"

        redirect verify $flags >"$scratch/out"
        says 'IPv4 outbound: .* is caught'
        says 'IPv6 outbound: .* is caught'
        says 'IPv4 outbound: socket mark 0x4747 goes by'
        says 'IPv4 inbound: .* is caught'
        says 'IPv6 inbound: .* is caught'
        says 'IPv6 inbound: the admin port 4791 goes by'
        redirect verify $flags --directions=outbound >"$scratch/out"
        says 'IPv6 outbound: \[2001:db8::1\]'
        if ip link show weft-probe0 2>/dev/null; then echo 'the link of the proof is still there'; exit 1; fi

        redirect show >"$scratch/out"
        says '4743'
        redirect remove
        no_rules
        redirect remove >"$scratch/out"
        says 'no rules'
        "#
    ));
}

#[test]
fn iptables_over_nf_tables() {
    lives_and_leaves_nothing("iptables-nft");
}

#[test]
fn iptables_over_its_legacy_interface() {
    lives_and_leaves_nothing("iptables-legacy");
}

#[test]
fn nft_by_itself() {
    lives_and_leaves_nothing("nft");
}

#[test]
fn auto_applies_and_proves_in_one_go() {
    in_namespace("redirect apply $flags --verify; redirect remove; no_rules");
}

#[test]
fn auto_keeps_to_the_back_end_that_has_rules_and_a_change_of_back_end_leaves_nothing_behind() {
    in_namespace(
        "
        iptables-legacy -t nat -A OUTPUT -p udp --dport 9 -j ACCEPT
        redirect apply $flags
        saved iptables-legacy | grep -q 'j WEFT_OUT'
        redirect apply $flags --backend=nft
        if saved iptables-legacy | grep WEFT; then echo 'the old rules are still there'; exit 1; fi
        redirect apply $flags --backend=iptables-nft --ipv6=off
        if nft list ruleset | grep 'table ip6* weft'; then echo 'the old tables are still there'; exit 1; fi
        if ip6tables-nft-save | grep WEFT; then echo 'IPv6 is off, and has rules'; exit 1; fi
        redirect remove
        no_rules
        saved iptables-legacy | grep -q 'dport 9 -j ACCEPT'
        ",
    );
}

#[test]
fn rules_of_others_stay_where_they_are() {
    in_namespace(
        r#"
        iptables-nft -t nat -N OTHER
        iptables-nft -t nat -A OUTPUT -d 127.0.0.11/32 -j OTHER
        saved iptables-nft >"$scratch/before"
        redirect apply $flags --backend=iptables-nft --ipv6=off
        redirect remove
        saved iptables-nft >"$scratch/after"
        diff "$scratch/before" "$scratch/after"
        "#,
    );
}

#[test]
fn many_ports_are_skipped_in_as_many_rules_as_it_takes() {
    in_namespace(
        r#"
        ports=$(seq -s, 1000 7 1500)
        flags="$flags --skip-outbound-ports=$ports,2000-2100 --skip-inbound-ports=$ports"
        for back_end in iptables-nft iptables-legacy nft; do
            redirect apply $flags --backend=$back_end
            redirect verify $flags
        done
        "#,
    );
}

#[test]
fn a_malformed_flag_changes_nothing() {
    in_namespace(
        "
        fails redirect apply $flags --skip-outbound-ports=99999
        says 99999
        fails redirect apply --exempt-mark=0
        says 'every unmarked socket'
        no_rules
        ",
    );
}

#[test]
fn a_user_that_the_namespace_lacks_is_refused_by_every_back_end() {
    in_namespace(
        "
        for back_end in auto iptables-nft iptables-legacy nft; do
            fails redirect apply --exempt-uid=4747 --backend=$back_end
            says 'user 4747 is not in this user namespace'
            no_rules
        done
        ",
    );
}

/// A program in front of the real ones that refuses everything but to tell its version.
const REFUSES: &str = r#"
refuses() {
    mkdir -p "$scratch/bin"
    for program in "$@"; do
        {
            echo '#!/bin/sh'
            echo 'if [ "$1" = --version ]; then echo "v1.8 (nf_tables)"; exit 0; fi'
            echo 'echo no table here >&2; exit 3'
        } >"$scratch/bin/$program"
        chmod +x "$scratch/bin/$program"
    done
    PATH="$scratch/bin:$PATH"
}
"#;

#[test]
fn ipv4_is_taken_back_where_ipv6_is_refused() {
    let script = "
        refuses ip6tables-restore ip6tables-nft-restore
        fails redirect apply $flags --backend=iptables-nft
        says 'no rules were applied'
        says 'no table here'
        no_rules
        ";
    in_namespace(&format!("{REFUSES}{script}"));
}

#[test]
fn auto_goes_on_to_the_next_back_end_where_one_refuses() {
    let script = r#"
        refuses iptables-restore iptables-save iptables-nft-restore
        redirect apply $flags --verify >"$scratch/out"
        says 'by iptables-legacy'
        says 'no table here'
        redirect remove
        no_rules
        "#;
    in_namespace(&format!("{REFUSES}{script}"));
}

#[test]
fn what_is_not_proven_is_removed_again() {
    in_namespace(
        "
        # Another's rule lets by what the probe sends, before ours are asked.
        nft add table ip other
        nft 'add chain ip other out { type nat hook output priority -150; }'
        nft add rule ip other out ip daddr 192.0.2.2 dnat to 198.18.0.9
        fails redirect apply $flags --backend=iptables-nft --verify
        says 'was not caught'
        says 'removed again'
        no_rules
        ",
    );
}

#[test]
fn without_rules_nothing_is_proven() {
    in_namespace(
        "
        fails redirect verify $flags
        says 'was not caught: it arrived there'
        fails redirect verify $flags --directions=inbound
        says 'was not caught'
        ",
    );
}

#[test]
fn outbound_is_proven_without_any_right_and_a_missing_redirect_has_a_status_of_its_own() {
    in_namespace(
        r#"
        powerless() { setpriv --inh-caps=-all --bounding-set=-all "$WEFT_REDIRECT" "$@"; }
        status=0
        powerless verify $flags --directions=outbound >"$scratch/out" 2>&1 || status=$?
        [ $status = 3 ] || { cat "$scratch/out"; echo "it ended with status $status"; exit 1; }
        says 'was not caught'
        redirect apply $flags
        powerless verify $flags --directions=outbound >"$scratch/out"
        says 'IPv4 outbound: .* is caught'
        says 'IPv6 outbound: .* is caught'
        says 'socket mark 0x4747 goes by is not proven'
        fails powerless verify $flags
        says 'CAP_NET_ADMIN'
        "#,
    );
}

#[test]
fn a_probe_without_a_route_says_so() {
    in_namespace(
        "
        redirect apply $flags
        ip route del default
        fails redirect verify $flags --directions=outbound
        says 'no route to 192.0.2.1'
        redirect verify $flags
        ",
    );
}

#[test]
fn a_port_that_is_taken_says_that_the_sidecar_may_be_running() {
    in_namespace(
        r#"
        redirect apply $flags
        # The other end of a proof listens where it is told to.
        mkfifo "$scratch/orders"
        redirect probe-peer <"$scratch/orders" >"$scratch/answers" &
        exec 3>"$scratch/orders"
        echo '{"Join":{"link":"lo","addresses":[],"listen":["127.0.0.1:4740"]}}' >&3
        timeout 10 sh -c 'until grep -q Done "$1"; do sleep 0.1; done' sh "$scratch/answers"
        fails redirect verify $flags --directions=outbound
        says '127.0.0.1:4740 is taken'
        exec 3>&-
        wait
        "#,
    );
}

#[test]
fn without_the_right_to_change_rules_the_error_says_which_is_missing() {
    in_namespace(
        r#"
        fails unshare --user "$WEFT_REDIRECT" apply $flags
        says 'CAP_NET_ADMIN'
        no_rules
        "#,
    );
}
