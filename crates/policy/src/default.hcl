# What every token may do unless it was created without this policy.

# look at itself
path "auth/token/lookup-self" {
    capabilities = ["read"]
}

# renew itself
path "auth/token/renew-self" {
    capabilities = ["update"]
}

# revoke itself
path "auth/token/revoke-self" {
    capabilities = ["update"]
}

# ask what it may do
path "sys/capabilities-self" {
    capabilities = ["update"]
}

# see its own rules
path "sys/internal/ui/resultant-acl" {
    capabilities = ["read"]
}

# renew and look up leases whose id it knows
path "sys/renew" {
    capabilities = ["update"]
}
path "sys/leases/renew" {
    capabilities = ["update"]
}
path "sys/leases/lookup" {
    capabilities = ["update"]
}

# its own cubbyhole
path "cubbyhole/*" {
    capabilities = ["create", "read", "update", "delete", "list"]
}

# wrap, look up and unwrap answers
path "sys/wrapping/wrap" {
    capabilities = ["update"]
}
path "sys/wrapping/lookup" {
    capabilities = ["update"]
}
path "sys/wrapping/unwrap" {
    capabilities = ["update"]
}

# hash
path "sys/tools/hash" {
    capabilities = ["update"]
}
path "sys/tools/hash/*" {
    capabilities = ["update"]
}

# sign in through the identity provider
path "identity/oidc/provider/+/authorize" {
    capabilities = ["read", "update"]
}

# follow the secrets it may read, and say which value it uses
path "sys/lifecycle/watch" {
    capabilities = ["read"]
}
path "sys/lifecycle/ack" {
    capabilities = ["update"]
}
path "sys/lifecycle/goodbye" {
    capabilities = ["update"]
}
