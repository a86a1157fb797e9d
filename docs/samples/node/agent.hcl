address  = "http://127.0.0.1:8200"
instance = "billing-node-1"

approle {
  role_id_file   = "/etc/billing/role-id"
  secret_id_file = "/etc/billing/secret-id"
}

file "billing-db" {
  path   = "/run/billing/login.json"
  format = "json"

  health {
    http     = "http://127.0.0.1:8080/healthz"
    deadline = "10s"
  }
}
