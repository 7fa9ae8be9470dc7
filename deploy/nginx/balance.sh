#!/bin/sh
# Runs nginx before the replicas that are ready: looks up the address of each every second, asks its /readyz, and reloads
# nginx when the ready ones have changed. nginx without a subscription cannot ask by itself.
#
#   REPLICAS   host:port ..., each name standing for as many replicas as it has addresses
#   NGINX_CONF /etc/nginx/nginx.conf   its include is RUN_DIR/replicas.conf; replica.conf lies beside it
#   RUN_DIR    /run/nginx
#
# SIGTERM and SIGINT let nginx finish what it has begun. It ends with nginx.
set -eu

: "${REPLICAS:?set it to host:port ...}"
NGINX_CONF=${NGINX_CONF:-/etc/nginx/nginx.conf}
RUN_DIR=${RUN_DIR:-/run/nginx}
upstream=$RUN_DIR/replicas.conf

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

# Writes the upstream of the addresses on its input: for each replica a server on a socket, which sends to that replica
# alone and tells what it refuses from what it broke on (nginx.conf says why).
#
# max_fails=0: a refusal sends the one request elsewhere, but must not take a busy replica away from the others, or two
# busy ones would both be gone. Taking away is what this script does, by /readyz. Idle connections are kept for less than
# the service keeps them (75 s), so that no request is sent on one that is just being closed.
write() {
    addresses=$(cat)
    {
        echo "upstream replicas {"
        echo "    zone replicas 64k;"
        echo "    least_conn;"
        for address in $addresses; do echo "    server unix:$RUN_DIR/$address.sock max_fails=0;"; done
        echo "    keepalive 64;"
        echo "}"
        for address in $addresses; do
            name=$(echo "$address" | tr : _)  # a name has no port
            echo "upstream $name {"
            echo "    server $address max_fails=0;"
            echo "    keepalive 64;"
            echo "    keepalive_timeout 60s;"
            echo "}"
            echo "server {"
            echo "    listen unix:$RUN_DIR/$address.sock;"
            echo "    set \$replica $name;"
            echo "    include $(dirname "$NGINX_CONF")/replica.conf;"
            echo "}"
        done
    } >"$upstream.new"
    mv "$upstream.new" "$upstream"
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
echo "$chosen" | write
rm -f "$RUN_DIR"/*.sock  # nginx leaves them behind when it quits
nginx -c "$NGINX_CONF" -g 'daemon off;' &
nginx=$!
stopping=
trap 'stopping=yes; kill -QUIT $nginx' TERM INT

while [ -z "$stopping" ] && kill -0 $nginx 2>/dev/null; do
    sleep 1 &
    wait $! || true
    now=$(choose)
    if [ -z "$stopping" ] && [ -n "$now" ] && [ "$now" != "$chosen" ]; then
        chosen=$now
        echo "balance: sending to" $chosen >&2
        echo "$chosen" | write
        kill -HUP $nginx 2>/dev/null || true
    fi
done
wait $nginx
