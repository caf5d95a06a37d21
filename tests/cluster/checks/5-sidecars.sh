# Native sidecars: init containers with restartPolicy Always.
kubectl apply -n $NS --validate=false -f - > /dev/null <<K
apiVersion: v1
kind: Pod
metadata: {name: native}
spec:
  terminationGracePeriodSeconds: 10
  initContainers:
  - name: side
    image: $REGISTRY/busybox:1
    imagePullPolicy: Never
    restartPolicy: Always
    command: [sh, -c, 'trap "exit 0" TERM; sleep 2; mkdir /tmp/w; echo hi > /tmp/w/index.html; httpd -p 9000 -h /tmp/w; sleep 100000 & wait']
    startupProbe: {httpGet: {path: /, port: 9000}, periodSeconds: 1, failureThreshold: 60}
    readinessProbe: {httpGet: {path: /, port: 9000}, periodSeconds: 1}
  - {name: after, $POD, command: [wget, -qO-, "http://127.0.0.1:9000/"]}
  containers:
  - name: app
    image: $REGISTRY/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'trap "wget -qO- http://127.0.0.1:9000/ && echo app ends; exit 0" TERM; wget -qO- http://127.0.0.1:9000/; sleep 100000 & wait']
---
apiVersion: batch/v1
kind: Job
metadata: {name: job-side}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 2
      initContainers: [{name: side, $POD, restartPolicy: Always, command: [sleep, "100000"]}]
      containers: [{name: c, $POD, command: [sh, -c, "echo done; sleep 1"]}]
K
known() { kubectl get --raw /openapi/v2 | python3 -c 'import json, sys; print(*json.load(sys.stdin)["definitions"]["io.k8s.api.core.v1.Container"]["properties"])'; }
ok "native sidecar: the server's schema has them" prints restartPolicy known
ok "native sidecar: pod Ready" ready native
ok "native sidecar: the init container after it could use it" prints hi k logs native -c after
ok "native sidecar: so could the app, from its start" prints hi k logs native -c app
restarts() { k get pod native -o 'jsonpath={.status.initContainerStatuses[?(@.name=="side")].restartCount}'; }
k exec native -c side -- kill 1
ok "native sidecar: started again when it ends" within 30 prints '^[1-9]' restarts
ok "native sidecar: pod Ready again" ready native
k logs -f native -c app > "$TMP/app" 2>&1 & follower=$!
ok "native sidecar: pod deletion" k delete pod native --timeout=60s
wait $follower
ok "native sidecar: it still served while the app ended" grep -q 'app ends' "$TMP/app"
ok "native sidecar: does not keep a job from completing" k wait --for=condition=complete job/job-side --timeout=60s
