// Package demo shows, and tries over and over, what Pollux is for: it sets up a cluster on one
// machine (demo/lab), runs a guest on it that clients use, does harm to the hosts, and has everything
// that the clients saw judged by checkers that know nothing of Pollux (tests/history).
package demo
