# Jobs, restarts, limits, files of the node, rolling restarts, graceful ends.
k apply -f - > /dev/null <<K
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [{name: c, $POD, command: [sh, -c, "echo done; sleep 1"]}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, $POD, command: [sh, -c, "sleep 1; exit 3"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: limits}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, $POD, command: [sleep, "100000"], resources: {limits: {cpu: 100m, memory: 32Mi}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: installer}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: $REGISTRY/busybox:1
    imagePullPolicy: Never
    command: [sh, -ec, 'cd /host/bin; echo x > $NS; rm $NS; readlink bridge; cd ../conf; echo x > $NS; rm $NS; cat *.conflist']
    volumeMounts: [{name: bin, mountPath: /host/bin}, {name: conf, mountPath: /host/conf}]
  volumes: [{name: bin, hostPath: {path: /opt/cni/bin}}, {name: conf, hostPath: {path: /etc/cni/net.d}}]
K
ok "job completes" k wait --for=condition=complete job/job --timeout=60s
ok "container that ends is started again" within 20 prints '^[1-9]' k get pod crash -o 'jsonpath={.status.containerStatuses[0].restartCount}'
ok "pod with limits Ready" ready limits
ok "its memory limit is in force" prints '^33554432$' k exec limits -- cat /sys/fs/cgroup/memory/memory.limit_in_bytes

finished() { prints Succeeded k get pod installer -o 'jsonpath={.status.phase}'; }
ok "an installer of plugins finds its directories" within 30 finished

running() { k get pod -l app=web --field-selector=status.phase=Running -o name | sort; }
before=$(running)
restart() { k rollout restart deploy/web && k rollout status deploy/web --timeout=90s; }
ok "rolling restart" restart
ok "pods were replaced" none test "$before" = "$(running)"
ok "service still answers" within 10 prints '^web-' get client http://web/
last=$(k get pod -l app=web -o 'jsonpath={.items[-1:].metadata.name}')
k logs -f "$last" > "$TMP/last" 2>&1 & follower=$!
ok "graceful deletion (preStop, TERM handled)" k delete pod "$last" --timeout=60s
wait $follower
ok "its last words" grep -q bye "$TMP/last"
