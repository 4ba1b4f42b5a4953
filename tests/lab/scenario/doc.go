// Package scenario shows, in the lab, what Pollux promises for stock guests: a Debian server with PostgreSQL or Orthanc
// does its work for a client while the hosts under it lose power. Each scenario stands alone and says how long its
// steps took; no time decides a verdict.
package scenario
