// Package scenario shows, in the lab, what Pollux promises for stock guests: a Debian server with PostgreSQL or Orthanc
// does its work for a client while the hosts under it lose power.
//
//	TestBoots                      1, 2 and 4 CPUs and UEFI: login, reboot, power button, all of it protected
//	TestBusyGuestIsMirrored        packages, archives and a compiler; then memory and disk, page by page, on both hosts
//	TestGuestTime                  the clocks as a program in the guest sees them, over a takeover and a switchover
//	TestImagesOutliveTheirHost     DICOM studies stored and fetched through a takeover; images a second, also on QEMU
//	TestPostgresOutlivesItsHosts   pgbench and a ledger through ten takeovers (two with -short); amcheck, fsck, equal disks
//	TestPowerLossOfBothHosts       both plugs at once; what was acknowledged is there after the cold start
//	TestFilesOutliveTheirHost      a tree written with fsync, after a takeover and after a cold start of the other host alone
//
// Each scenario can be run alone and says how long its steps took; no time decides a verdict. Tests that follow each
// other and want the same guest share a lab. The programs that look for harm know nothing of Pollux: they compare what a
// client was told with what the guest has.
package scenario
