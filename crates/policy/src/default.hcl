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
