# Deployments, services, DNS, exec and logs, and tokens.
k apply -f - > /dev/null <<K
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: $REGISTRY/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, 'trap "echo bye; exit 0" TERM; mkdir -p /tmp/w; hostname > /tmp/w/index.html; httpd -f -v -p 8080 -h /tmp/w & echo up; wait']
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {exec: {command: [sleep, "1"]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: client}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  containers: [{name: c, $POD, command: [sleep, "100000"], volumeMounts: [{name: token, mountPath: /var/run/secrets/mesh}]}]
  volumes:
  - name: token
    projected:
      sources:
      - {serviceAccountToken: {audience: mesh, expirationSeconds: 3600, path: token}}
      - {configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}}
K
ok "deployment of 2 pods, readiness probes" k rollout status deploy/web --timeout=60s
ok "client pod Ready" ready client
[ $failed = 0 ] || { k get events | tail -n 5; die "pods do not start: the other checks would only repeat it"; }
VIP=$(k get service web -o 'jsonpath={.spec.clusterIP}')
WEB=$(k get pod -l app=web -o 'jsonpath={.items[0].metadata.name}')

ok "exec" prints '^client$' k exec client -- hostname
ok "logs" prints up k logs deploy/web
ok "service by address" within 10 prints '^web-' get client http://$VIP/
both() { for _ in $(seq 30); do get client http://$VIP/; done | sort -u | tee "$TMP/both"; [ "$(wc -l < "$TMP/both")" = 2 ]; }
ok "service address balances over both pods" both
ok "service by short name" prints '^web-' get client http://web/
ok "service by full name" prints '^web-' get client http://web.$NS.svc.cluster.local/
pods_of() { k exec client -- nslookup -type=a "$1" | grep -c '^Address: 10.244'; }
ok "headless name gives both pods' addresses" prints '^2$' pods_of web-headless.$NS.svc.cluster.local
ok "unknown name is NXDOMAIN" prints "NXDOMAIN|can't find" k exec client -- nslookup nothing.example.com
ok "hairpin: a pod reaches itself through the service" within 20 prints "^$WEB\$" get "$WEB" http://$VIP/
ok "service from the node's own processes" within 10 prints '^web-' node timeout 3 wget -qO- http://$VIP/

api() { k exec client -- sh -c 'wget -qO- --no-check-certificate --header "Authorization: Bearer $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)" https://kubernetes.default/apis'; }
ok "API server from a pod, by its token" prints APIGroupList api
claims() { k exec client -- cat /var/run/secrets/mesh/token | cut -d. -f2 | tr _- /+ | base64 -d 2> /dev/null; true; }
ok "projected token: audience, bound to its pod" prints '"aud":\["mesh"\].*"pod":\{"name":"client"' claims
review() { # audience
  printf '{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "%s", "audiences": ["%s"]}}' \
    "$(k exec client -- cat /var/run/secrets/mesh/token)" "$1" | kubectl create -f - -o 'jsonpath={.status.authenticated} {.status.user.username}'
}
ok "TokenReview accepts it" prints "^true system:serviceaccount:$NS:client" review mesh
ok "TokenReview refuses it for another audience" none prints "^true" review other
forward() {
  local pid rc
  "$BIN/kubectl" --kubeconfig="$CONFIG" -n $NS port-forward "pod/$WEB" :8080 > "$TMP/forward" 2>&1 & pid=$!
  within 10 grep -q '^Forwarding from 127' "$TMP/forward"
  prints "^$WEB" python3 -c 'import sys, urllib.request as u; print(u.urlopen("http://127.0.0.1:%s/" % sys.argv[1], timeout=5).read().decode())' \
    "$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\).*/\1/p' "$TMP/forward")"; rc=$?
  kill $pid; wait $pid 2> /dev/null
  return $rc
}
ok "port-forward" forward
slices() { kubectl get --raw "/apis/discovery.k8s.io/v1/namespaces/$NS/endpointslices"; }
ok "EndpointSlices in v1, with conditions and node" prints '"serving":true.*"nodeName":"'$NODE_NAME'"' slices
