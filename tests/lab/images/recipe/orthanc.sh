# A DICOM server as Debian packages it, its index in SQLite. It accepts associations from anybody on the lab's
# network, and sends what the client asks for to the client.
apt-get -q -y install orthanc
set_option() {
	sed -i "s|^\( *\"$1\" *: *\).*,\$|\1$2,|" /etc/orthanc/orthanc.json
	grep -q "^ *\"$1\" *: *$2,\$" /etc/orthanc/orthanc.json || { echo "orthanc.json has no option $1 to set" >&2; exit 1; }
}
for option in DicomAlwaysAllowFind DicomAlwaysAllowGet DicomAlwaysAllowMove OverwriteInstances; do set_option $option true; done
set_option HttpServerEnabled false
# A pair whose machines are emulated stands still for longer than real ones.
set_option DicomScpTimeout 600
set_option DicomScuTimeout 600
sed -i "s|^ *\"DicomModalities\" *: *{|&\n    \"client\" : [ \"CLIENT\", \"$CLIENT_ADDRESS\", 11112 ]|" /etc/orthanc/orthanc.json
grep -q "\"CLIENT\", \"$CLIENT_ADDRESS\"" /etc/orthanc/orthanc.json
