# An init container with NET_ADMIN redirects a pod's traffic, as a mesh does: outbound of all but one user to port 15001,
# inbound of port 8080 to 15006.
k apply -f - > /dev/null <<K
apiVersion: v1
kind: Pod
metadata: {name: meshed, labels: {app: meshed}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: redirect
    image: $REGISTRY/tools:1
    imagePullPolicy: Never
    securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN, NET_RAW]}, runAsUser: 0, readOnlyRootFilesystem: true}
    volumeMounts: [{name: run, mountPath: /run}]
    command:
    - sh
    - -ec
    - |
      for t in iptables ip6tables; do printf '%s\n' '*nat' '-A OUTPUT -p tcp ! -o lo -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 15001' \
        '-A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 15006' COMMIT | \$t-restore --noflush -w 5; done
      iptables-save -t nat
      nft list tables
  containers:
  - name: proxy
    image: $REGISTRY/busybox:1
    imagePullPolicy: Never
    securityContext: {runAsUser: 1337, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    readinessProbe: {tcpSocket: {port: 15006}, periodSeconds: 1}
    command: [sh, -c, 'mkdir -p /tmp/o /tmp/i; echo outbound > /tmp/o/index.html; echo inbound > /tmp/i/index.html; httpd -p 15001 -h /tmp/o; exec httpd -f -p 15006 -h /tmp/i']
  - {name: app, $POD, command: [sleep, "100000"]}
  volumes: [{name: run, emptyDir: {medium: Memory}}]
K
ok "pod with a NET_ADMIN init container Ready" ready meshed
ok "its rules, by iptables-restore" prints 'REDIRECT --to-ports 15006' k logs meshed -c redirect
ok "nft sees them" prints '^table ip6? nat' k logs meshed -c redirect
from() { k exec meshed -c "$1" -- timeout 3 wget -qO- http://web/; }
ok "outbound of the app goes to the proxy" prints '^outbound$' from app
ok "outbound of the proxy's user does not" prints '^web-' from proxy
ok "inbound goes to the proxy" prints '^inbound$' get client "http://$(k get pod meshed -o 'jsonpath={.status.podIP}'):8080/"
ok "the rules are the pod's alone" none prints 15006 node iptables-save
