// Package pki is who is who in a cluster: its certificate authority, the certificates of hosts and
// witnesses, the tokens with which machines join, and the TLS configurations made of them.
//
// Invariants: TLS 1.3 only. Both sides show a certificate of the cluster's CA, on every connection but
// those of the join protocol, where the joiner has none yet and pins the CA by the fingerprint in its
// token. A certificate is good for one name (its only DNS name) and one role (its organizational unit),
// and both come from the token, never from the request. Tokens are stored as hashes, work once, and
// expire. Private keys never leave the machine that made them.
//
// The CA's key lies on the host that founded the cluster (pki/ca.key). Keep a copy of it in a safe
// place: without it no machine can join. A host becomes an issuer by being given that file.
package pki
