#!/bin/sh
# Runs nginx before the replicas that are ready: looks up the address of each every second, asks its /readyz, and reloads
# nginx when the ready ones have changed. nginx without a subscription cannot ask by itself.
#
#   REPLICAS   host:port ..., each name standing for as many replicas as it has addresses
#   NGINX_CONF /etc/nginx/nginx.conf   its include is RUN_DIR/replicas.conf; relay.conf and replica.conf lie beside it
#   RUN_DIR    /run/nginx
#
# There are two instances of nginx: the balancer (nginx.conf), and the relay (relay.conf), through which it sends; nginx.conf
# says why. One instance cannot be both: when nginx is told to quit, it closes all sockets at once, so a request that the
# balancer had taken in would no longer get through. For the same reason the relay keeps the socket of a replica that has
# gone: it is open before the balancer sends there, and until its last request has ended.
#
# SIGTERM and SIGINT let both finish what they have begun. It ends with either.
set -eu

: "${REPLICAS:?set it to host:port ...}"
NGINX_CONF=${NGINX_CONF:-/etc/nginx/nginx.conf}
RUN_DIR=${RUN_DIR:-/run/nginx}
conf_dir=$(dirname "$NGINX_CONF")

# Prints address:port of every replica, ready or not.
all() {
    for replica in $REPLICAS; do
        getent ahostsv4 "${replica%:*}" | while read -r address kind _; do
            if [ "$kind" = STREAM ]; then echo "$address:${replica##*:}"; fi
        done
    done | sort -u
}

# Keeps of the addresses on its input the ones that are ready; asks them all at once.
ready() {
    while read -r address; do
        curl --silent --fail --max-time 2 --output /dev/null "http://$address/readyz" && echo "$address" &
    done | sort
}

# Writes the upstream of the addresses that are its arguments: for each replica the relay's socket.
#
# max_fails=0: a refusal sends the one request elsewhere, but must not take a busy replica away from the others, or two
# busy ones would both be gone. Taking away is what this script does, by /readyz.
write_upstream() {
    {
        echo "upstream replicas {"
        echo "    zone replicas 64k;"
        echo "    least_conn;"
        for address in "$@"; do echo "    server unix:$RUN_DIR/$address.sock max_fails=0;"; done
        echo "}"
    } >"$RUN_DIR/replicas.conf.new"
    mv "$RUN_DIR/replicas.conf.new" "$RUN_DIR/replicas.conf"
}

# Writes the relay's servers: for each address that is an argument one on a socket, which sends to that replica alone and
# tells what it refuses from what it broke on.
#
# Idle connections are kept for less than the service keeps them (75 s), so that no request is sent on one that is just
# being closed.
write_relay() {
    for address in "$@"; do
        name=$(echo "$address" | tr : _)  # a name has no port
        echo "upstream $name {"
        echo "    server $address max_fails=0;"
        echo "    keepalive 64;"
        echo "    keepalive_timeout 60s;"
        echo "}"
        echo "server {"
        echo "    listen unix:$RUN_DIR/$address.sock;"
        echo "    set \$replica $name;"
        echo "    include $conf_dir/replica.conf;"
        echo "}"
    done >"$RUN_DIR/relay-servers.conf.new"
    mv "$RUN_DIR/relay-servers.conf.new" "$RUN_DIR/relay-servers.conf"
}

# Prints those of its arguments that the relay has no socket for.
unknown() {
    for address in "$@"; do
        if [ ! -S "$RUN_DIR/$address.sock" ]; then echo "$address"; fi
    done
}

# Waits until the relay has opened a socket for each of its arguments; fails if that takes half a minute.
wait_for_relay() {
    tries=300
    while [ -n "$(unknown "$@")" ]; do
        tries=$((tries - 1))
        if [ $tries -eq 0 ] || ! kill -0 $relay 2>/dev/null; then
            echo "balance: the relay did not open its sockets" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Prints the addresses to send to: the ready ones, or, when none is, all, whose own refusal then says why.
choose() {
    known=$(all)
    chosen=$(echo "$known" | ready)
    echo "${chosen:-$known}"
}

until chosen=$(choose) && [ -n "$chosen" ]; do
    echo "balance: none of $REPLICAS has an address yet" >&2
    sleep 1
done
rm -f "$RUN_DIR"/*.sock  # nginx leaves them behind when it is killed
# What follows splits lists of addresses at white space: they hold nothing that the shell would expand.
# shellcheck disable=SC2086
write_relay $chosen
relayed=$chosen
nginx -c "$conf_dir/relay.conf" -g 'daemon off;' &
relay=$!
# shellcheck disable=SC2086
wait_for_relay $chosen || { kill -TERM $relay; exit 1; }
# shellcheck disable=SC2086
write_upstream $chosen
nginx -c "$NGINX_CONF" -g 'daemon off;' &
balancer=$!
stopping=
trap 'stopping=yes; kill -QUIT $balancer' TERM INT

# shellcheck disable=SC2086
while [ -z "$stopping" ] && kill -0 $balancer 2>/dev/null && kill -0 $relay 2>/dev/null; do
    sleep 1 &
    wait $! || true
    now=$(choose)
    if [ -n "$stopping" ] || [ -z "$now" ] || [ "$now" = "$chosen" ]; then continue; fi
    if [ -n "$(unknown $now)" ]; then
        relayed=$(printf '%s\n' $relayed $now | sort -u)
        write_relay $relayed
        kill -HUP $relay 2>/dev/null || true
        wait_for_relay $now || continue
    fi
    chosen=$now
    echo "balance: sending to" $chosen >&2
    write_upstream $chosen
    kill -HUP $balancer 2>/dev/null || true
done

# Has an instance finish what it has begun, and returns its status; another signal does not end the wait.
finish() {
    status=0
    kill -QUIT "$1" 2>/dev/null || true
    wait "$1" || status=$?
    while kill -0 "$1" 2>/dev/null; do status=0; wait "$1" || status=$?; done
    return $status
}

ended=0
finish $balancer || ended=$?
finish $relay || ended=$?  # when nothing is sent through it any more
exit $ended
