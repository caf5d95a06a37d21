# One CA and all certificates of a cluster, into $RUN/kube/pki, and a kubeconfig for each client. 30 days: a run is shorter.

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

certificate() { # name subject extensions...
  local name=$1 subject=$2; shift 2
  key "$name"
  openssl req -new -key "$name.key" -subj "$subject" -out "$name.csr"
  openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$name.crt" -extfile <(printf '%s\n' "$@") 2> /dev/null
  rm "$name.csr"
}

kubeconfig() { # file name
  inline() { base64 -w0 "$RUN/kube/pki/$1"; }
  cat > "$1" <<K
apiVersion: v1
kind: Config
clusters: [{name: weft, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(inline ca.crt)}}]
users: [{name: $2, user: {client-certificate-data: $(inline "$2.crt"), client-key-data: $(inline "$2.key")}}]
contexts: [{name: weft, context: {cluster: weft, user: $2}}]
current-context: weft
K
  chmod 600 "$1"
}

make_pki() {
  (
    set -e; umask 077; cd "$RUN/kube/pki"
    key ca
    openssl req -x509 -new -key ca.key -subj /CN=weft-kube-ca -days 30 -out ca.crt \
      -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
    names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
    certificate apiserver /CN=kube-apiserver "subjectAltName=IP:127.0.0.1,IP:$SVC_IP,IP:$NODE_IP,$names" extendedKeyUsage=serverAuth
    certificate kubelet-server "/CN=$NODE_NAME" "subjectAltName=IP:$NODE_IP,DNS:$NODE_NAME" extendedKeyUsage=serverAuth
    while read -r name subject; do certificate "$name" "$subject" extendedKeyUsage=clientAuth; done <<K
admin /O=system:masters/CN=admin
controllers /CN=system:kube-controller-manager
scheduler /CN=system:kube-scheduler
proxy /CN=system:kube-proxy
kubelet /O=system:nodes/CN=system:node:$NODE_NAME
kdns /CN=system:kdns
front-proxy /CN=front-proxy
K
    openssl genrsa -out sa.key 2048 2> /dev/null
    openssl rsa -in sa.key -pubout -out sa.pub 2> /dev/null
  )
  kubeconfig "$CONFIG" admin
  local name
  for name in controllers scheduler proxy kubelet kdns; do kubeconfig "$RUN/kube/$name.kubeconfig" $name; done
}
