# A mutating webhook that adds a container; the API server reaches it through a service, on the node.
ANSWERS=18443
(
  cd "$TMP"
  openssl ecparam -name prime256v1 -genkey -noout -out hook.key
  openssl req -new -key hook.key -subj /CN=hook -out hook.csr
  openssl x509 -req -in hook.csr -CA "$RUN/kube/pki/ca.crt" -CAkey "$RUN/kube/pki/ca.key" -CAcreateserial -CAserial hook.srl -days 2 \
    -out hook.crt -extfile <(echo "subjectAltName=DNS:hook.$NS.svc") 2> /dev/null
)
nsenter -t "$(node_pid)" -n python3 "$HERE/checks/hook.py" "$NODE_IP" $ANSWERS "$TMP/hook.crt" "$TMP/hook.key" "$REGISTRY/busybox:1" > "$TMP/hook" 2>&1 &
HOOK=$!
kubectl apply -f - > /dev/null <<K
apiVersion: v1
kind: Service
metadata: {name: hook, namespace: $NS}
spec: {ports: [{port: 443, targetPort: $ANSWERS}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: hook, namespace: $NS}
subsets: [{addresses: [{ip: $NODE_IP}], ports: [{port: $ANSWERS}]}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: $NS}
webhooks:
- name: inject.example.com
  clientConfig: {service: {namespace: $NS, name: hook, path: /mutate}, caBundle: $(base64 -w0 "$RUN/kube/pki/ca.crt")}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  objectSelector: {matchLabels: {inject: "true"}}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
K
inject() {
  k delete pod injected --ignore-not-found --now
  k run injected --labels=inject=true --image="$REGISTRY/busybox:1" --image-pull-policy=Never --command -- sleep 100000 &&
    prints added k get pod injected -o 'jsonpath={.spec.containers[*].name}'
}
ok "webhook adds a container" within 20 inject
ok "injected pod Ready (2 containers)" ready injected
ok "exec into the added container" prints sleep k exec injected -c added -- ps
kill $HOOK; wait $HOOK 2> /dev/null; HOOK=
ok "webhook gone: its pods are refused" prints 'failed calling webhook' k run refused --labels=inject=true --image="$REGISTRY/busybox:1"
ok "webhook gone: other pods are not" k run other --image="$REGISTRY/busybox:1" --image-pull-policy=Never --command -- sleep 100000
kubectl delete mutatingwebhookconfiguration $NS > /dev/null
k delete pod injected other --now --wait=false > /dev/null
