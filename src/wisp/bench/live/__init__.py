"""`wisp bench`: systems compared on a real server over the real wire, with emulated devices."""
